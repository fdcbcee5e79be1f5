"""Tables of scores, as a reader sees them."""

from __future__ import annotations

from grpo_jax.report.tables import as_markdown, as_text, gain_rows, score_rows


def make_summary(mean: float, clarify: bool = True) -> dict:
  found = {"mean": mean, "ci95": [mean - 0.1, mean + 0.1], "n": 40}
  behaviors = {"execute": found} | ({"clarify": found} if clarify else {})
  whole = {"n": 80, "reward_mean": mean, "reward_ci95": [mean - 0.05, mean + 0.05]}
  return whole | {"by_behavior": behaviors}


COMPARED = {
  "difference": 0.25,
  "difference_ci95": [0.2, 0.3],
  "relative_gain": 0.5,
  "relative_gain_ci95": [0.4, 0.6],
}


def test_gain_table_has_a_row_for_each_split_and_behaviour():
  header, rows = gain_rows(
    {"seen": make_summary(0.5), "unseen": make_summary(0.4)},
    {"seen": make_summary(0.75), "unseen": make_summary(0.6, clarify=False)},
    {"seen": COMPARED | {"by_behavior": {"execute": COMPARED | {"relative_gain": None}}}},
  )
  assert [row[:3] for row in rows] == [
    ("seen", "all", "80"),
    ("seen", "execute", "40"),
    ("seen", "clarify", "40"),
    ("unseen", "all", "80"),
    ("unseen", "execute", "40"),
  ]
  first = dict(zip(header, rows[0], strict=True))
  assert first["before [95% interval]"] == "0.500 [0.450, 0.550]"
  assert first["after [95% interval]"] == "0.750 [0.700, 0.800]"
  assert first["difference [95%]"] == "+0.250 [+0.200, +0.300]"
  assert first["relative gain [95%]"] == "+50% [+40%, +60%]"
  assert rows[1][-2:] == ("+0.250 [+0.200, +0.300]", "-")  # no gain over a base of nothing
  assert rows[2][-2:] == ("-", "-")  # nothing compared


def test_score_table_shows_one_evaluation():
  header, rows = score_rows({"seen": make_summary(0.5)})
  assert header[-1] == "reward [95% interval]"
  assert rows[0] == ("seen", "all", "80", "0.500 [0.450, 0.550]")
  assert rows[2] == ("seen", "clarify", "40", "0.500 [0.400, 0.600]")


def test_text_lines_up_and_parts_the_splits():
  text = as_text(("split", "n"), [("seen", "1"), ("seen", "22"), ("unseen", "3")])
  assert text.split("\n") == [
    "split   n", "------  --", "seen    1", "seen    22", "", "unseen  3",
  ]  # fmt: skip


def test_markdown_escapes_what_would_end_a_cell():
  assert as_markdown(("a", "b"), [("x|y", "z")]) == "| a | b |\n| --- | --- |\n| x\\|y | z |"
