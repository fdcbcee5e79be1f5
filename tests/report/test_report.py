"""The report of a run folder: what it shows, what it must not run, and unfinished runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from grpo_jax.report import page as report
from grpo_jax.report.page import gain_table, reward_color, write_report
from grpo_jax.report.scores import summarize
from grpo_jax.rewards import score
from grpo_jax.tasks.schema import ToolTask
from grpo_jax.tasks.synthetic.splits import generate

EVIL = "</pre><script>alert('x')</script> ```` {{ 1 }}"


def make_run(folder, *, finished=True):
  """A run folder as the training loop leaves it; before is always EVIL, after is always right."""
  (folder / "eval").mkdir(parents=True)
  config = {"seed": 3, "git_commit": "abc123", "grpo": {"inner_updates": 2}}
  (folder / "config.json").write_text(json.dumps(config))
  metrics = [{"step": s, "reward": s / 10, "step_time": 30.0, "num_tokens": 500} for s in range(4)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
  for when in ("base", "final") if finished else ("base",):
    summaries = {}
    for split in ("seen", "unseen"):
      tasks = [ToolTask.from_row(row) for row in generate(0, split, 25)]
      texts = [EVIL if when == "base" else task.answer for task in tasks]
      found = [score(text, task) for text, task in zip(texts, tasks, strict=True)]
      summaries[split] = summarize(tasks, [[one] for one in found], seed=0)
      rows = [
        {
          "index": i, "sample": 0, "id": task.id, "wanted": task.behavior, "tool": task.tool_name,
          "request": task.request, "prompt": f"prompt {i}", "answer": task.answer,
          "completion": text, "tokens": 1, "reward": one.total, "error": one.error,
          "shown": one.shown, "wrong_arguments": [],
        }
        for i, (task, text, one) in enumerate(zip(tasks, texts, found, strict=True))
      ]  # fmt: skip
      path = folder / "eval" / f"{when}_{split}.jsonl"
      path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"eval_{when}.json").write_text(json.dumps(summaries))
  return folder


class Page(HTMLParser):
  """The tags of a page, with their attributes, and its text."""

  def __init__(self, text: str) -> None:
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.text = ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = make_run(tmp_path_factory.mktemp("runs") / "my_run")
  assert write_report(folder) == folder / "report.html"
  return folder


@pytest.fixture(scope="module")
def page(run):
  return Page((run / "report.html").read_text(encoding="utf-8"))


def test_page_needs_nothing_beside_it(page):
  sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
  assert len(sources) == 2 and all(s.startswith("data:image/png;base64,") for s in sources)
  assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object")]
  assert not [attrs for _, attrs in page.tags if "http" in attrs.get("href", "")]


def test_completions_are_text_in_the_page(page):
  assert not [tag for tag, _ in page.tags if tag == "script"]
  assert page.text.count(EVIL) == 20


def test_ten_tasks_of_each_split_are_shown_before_and_after_with_their_colours(page):
  answers = [attrs["style"] for tag, attrs in page.tags if attrs.get("class") == "answer"]
  assert len(answers) == 40
  # Before and after alternate; before is EVIL, which scores the same low marks everywhere.
  assert all("hsl(120 " in style for style in answers[1::2])
  assert not any("hsl(120 " in style for style in answers[::2])


def test_examples_are_spread_over_the_split():
  rows = [{"index": i, "sample": s, "reward": 0} for i in range(25) for s in range(2)]
  shown = report._examples(rows, rows)
  assert [before["index"] for before, _ in shown] == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]
  assert all(row["sample"] == 0 for pair in shown for row in pair)
  assert len(report._examples(rows[:6], rows[:6])) == 3


def test_report_names_gain_mistakes_cost_and_settings(run, page):
  table = gain_table(run)
  assert [row[:2] for row in table.rows[:2]] == [("seen", "all"), ("seen", "execute")]
  assert "1.000 [1.000, 1.000]" in table.rows[0]
  markdown = (run / "report.md").read_text(encoding="utf-8")
  for text in (markdown, page.text):
    assert "4 training steps, 2.0 minutes, 500 tokens." in text
    assert re.search(r"seen: mean reward 0\.\d+ → 1\.000, \+\d+%", text)
    assert "no_call" in text or "unparsable" in text
    assert "abc123" in text and "inner_updates" in text
  assert table.markdown in markdown
  # After the training every answer is right: no mistake is left, and each behaviour is shown.
  mistakes = re.findall(r"^\| no_call .*$", markdown, re.MULTILINE)
  assert mistakes and all(line.endswith("% | 0.0% |") for line in mistakes)
  assert "| execute | after | 15 | 0 | 0 | 0 |" in markdown
  assert "(gain.png)" in markdown and (run / "gain.png").exists()


def test_markdown_keeps_completions_inside_their_fences(run):
  markdown = (run / "report.md").read_text(encoding="utf-8")
  assert f"`````text\n{EVIL}\n`````" in markdown


def test_an_unfinished_run_gets_a_report_of_what_there_is(tmp_path):
  folder = make_run(tmp_path / "run", finished=False)
  text = write_report(folder).read_text(encoding="utf-8")
  assert "has not finished" in text
  assert gain_table(folder).rows == []
  assert (folder / "reward.png").exists() and not (folder / "gain.png").exists()


def settle(folder, when, settings):
  """Writes settings into the summaries of one evaluation."""
  path = folder / f"eval_{when}.json"
  found = {k: v | {"settings": settings} for k, v in json.loads(path.read_text()).items()}
  path.write_text(json.dumps(found))


def test_evaluations_of_other_settings_are_not_compared(tmp_path):
  folder = make_run(tmp_path / "run")
  settle(folder, "base", {"reward": "tiered", "seed": 0})
  settle(folder, "final", {"reward": "binary", "seed": 0})
  text = write_report(folder).read_text(encoding="utf-8")
  assert "seen: no gain, for the evaluations before and after differ in reward" in text
  assert "mean reward" not in text.partition("<img")[0] and "has not finished" not in text
  assert gain_table(folder).rows == [] and not (folder / "gain.png").exists()
  settle(folder, "final", {"reward": "tiered", "seed": 0})
  text = write_report(folder).read_text(encoding="utf-8")
  assert "seen: mean reward" in text and "no gain" not in text and "not recorded" not in text


def test_evaluations_without_their_settings_are_compared_with_a_word(run, page):
  assert "seen: mean reward" in page.text
  assert page.text.count("not recorded whether both evaluations had the same settings") == 1


def test_a_run_that_only_has_its_settings_gets_a_report(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  assert "No training step was logged" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"config\.json"):
    write_report(tmp_path)


def test_colour_runs_from_red_to_green_and_stops_there():
  assert [reward_color(r) for r in (-1.0, 0.0, 0.5, 1.0, 7.0)] == [
    f"hsl({hue} 65% 88%)" for hue in (0, 0, 60, 120, 120)
  ]
