"""The templates in `assets/`, from which texts for people are made."""

import jinja2

TEMPLATES = jinja2.Environment(
  loader=jinja2.PackageLoader("grpo_jax", "assets"),
  # Completions are a model's words: in a page they are text, whatever they look like.
  autoescape=jinja2.select_autoescape(("html.j2",)),
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)
