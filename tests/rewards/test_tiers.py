"""The built-in rewards against the reward table of the design."""

from __future__ import annotations

import json

import pytest

from grpo_jax.rewards import ERRORS, RewardWeights, score
from grpo_jax.tasks.schema import ToolTask

TOOLS = [
  {
    "name": "search_flights",
    "description": "Finds flights.",
    "parameters": {
      "type": "object",
      "properties": {
        "origin": {"type": "string"},
        "destination": {"type": "string"},
        "departure_date": {"type": "string", "description": "Day of travel, ISO 8601"},
        "max_price": {"type": "number"},
        "cabin": {"type": "string", "enum": ["economy", "business"], "default": "economy"},
      },
      "required": ["origin", "destination", "departure_date"],
    },
  },
  {
    "name": "get_weather_forecast",
    "parameters": {
      "type": "object",
      "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
      "required": ["city"],
    },
  },
]
FLIGHT = {"origin": "Oslo", "destination": "Rome", "departure_date": "2025-03-01", "max_price": 300}


def make_task(ground_truth: object, behavior: str, **extra: object) -> ToolTask:
  return ToolTask.from_row(
    {
      "prompt": "a request",
      "tools": TOOLS,
      "reward_model": {"ground_truth": ground_truth},
      "extra_info": {"behavior": behavior, **extra},
    }
  )


def calls(*pairs: tuple[str, dict]) -> str:
  return json.dumps([{"name": name, "arguments": arguments} for name, arguments in pairs])


EXECUTE = make_task([{"name": "search_flights", "arguments": FLIGHT}], "execute")
CLARIFY = make_task(
  "Which departure_date should I use?", "clarify", missing=["departure_date"], tool="search_flights"
)
REFUSE = make_task("Sorry, I can't help with that.", "refuse")
GOLD = calls(("search_flights", FLIGHT))


@pytest.mark.parametrize(
  ("completion", "total", "error"),
  [
    (GOLD, 1.0, None),
    ("\n" + GOLD + "\n", 1.0, None),
    (f"<tool_call>\n{GOLD[1:-1]}\n</tool_call>", 1.0, None),
    (calls(("search_flights", {**FLIGHT, "max_price": 300.0})), 1.0, None),
    (calls(("search_flights", {**FLIGHT, "cabin": "economy"})), 1.0, None),
    (calls(("search_flights", {**FLIGHT, "max_price": "300"})), 0.5, "wrong_argument"),
    (calls(("search_flights", {**FLIGHT, "origin": "Bergen"})), 0.5, "wrong_argument"),
    (calls(("search_flights", {**FLIGHT, "cabin": "business"})), 0.5, "extra_argument"),
    (calls(("search_flights", {"origin": "Oslo"})), 0.5, "missing_argument"),
    (calls(("get_weather_forecast", {"city": "Rome"})), 0.0, "wrong_tool"),
    (calls(("book_flights", FLIGHT)), 0.0, "invented_tool"),
    (calls(("search_flights", FLIGHT), ("search_flights", FLIGHT)), 0.0, "extra_call"),
    (GOLD[:-3], 0.0, "unparsable"),
    (f"Here you are: {GOLD}", 0.0, "unparsable"),
    (f"```json\n{GOLD}\n```", 0.0, "unparsable"),
    (GOLD[1:-1], 0.0, "unparsable"),
    ("[]", 0.0, "unparsable"),
    ("", 0.0, "no_call"),
    ("Which departure_date should I use?", 0.0, "no_call"),
  ],
)
def test_execute_scores_follow_the_table(completion, total, error):
  found = score(completion, EXECUTE)
  assert (found.total, found.error) == (total, error)
  assert error is None or error in ERRORS


@pytest.mark.parametrize(
  ("completion", "total", "error"),
  [
    ("Which departure_date should I use?", 1.0, None),
    ("Could you tell me the departure date?", 1.0, None),
    ("On which day of travel?", 1.0, None),
    ("I need the departure date. Could you provide it?", 1.0, None),
    ("I can't search without a date. Which departure date do you want?", 1.0, None),
    ("Could you tell me the city?", 0.25, "wrong_question"),
    ("What would you like?", 0.25, "wrong_question"),
    ("The departure date is missing.", 0.25, "no_question"),
    ("Sorry, I can't help with that.", 0.25, "no_question"),
    ("Sorry, I can't do that. Could you tell me the departure date?", 0.25, "hedging"),
    ("Which origin, destination, city, days and departure date?", 0.25, "asks_everything"),
    ("", 0.0, "degenerate"),
    ("?!?", 0.0, "degenerate"),
    ("departure date? " * 20, 0.0, "degenerate"),
    ("Which departure date? " + "word " * 300, 0.0, "degenerate"),
    (GOLD, 0.0, "needless_call"),
    (GOLD + " Which departure date?", 0.0, "unparsable"),
    ("search_flights(origin='Oslo') Which departure date?", 0.0, "unparsable"),
  ],
)
def test_clarify_scores_follow_the_table(completion, total, error):
  found = score(completion, CLARIFY)
  assert (found.total, found.error) == (total, error)


@pytest.mark.parametrize(
  ("completion", "total", "error"),
  [
    ("Sorry, I can't help with that.", 1.0, None),
    ("Sorry, none of my tools can do that.", 1.0, None),
    ("I can’t do that. Is there anything else I can help with?", 1.0, None),
    ("Sorry, I can't do that. Could you tell me the city?", 0.25, "hedging"),
    ("Which city?", 0.25, "not_declined"),
    ("Sure, here it comes.", 0.25, "not_declined"),
    ("I can't help without the city.", 0.25, "not_declined"),
    (" \n ", 0.0, "degenerate"),
    (GOLD, 0.0, "needless_call"),
    (f"Sorry, I can't. {GOLD}", 0.0, "unparsable"),
  ],
)
def test_refuse_scores_follow_the_table(completion, total, error):
  found = score(completion, REFUSE)
  assert (found.total, found.error) == (total, error)


@pytest.mark.parametrize(
  ("completion", "shown"),
  [
    (GOLD, "execute"),
    ("Which city?", "clarify"),
    ("I can't do that.", "refuse"),
    ("I can't do that. Which city?", "other"),
    (GOLD[:-2], "other"),
    ("", "other"),
    ("Done.", "other"),
  ],
)
@pytest.mark.parametrize("task", [EXECUTE, CLARIFY, REFUSE])
def test_shown_behaviour_does_not_depend_on_the_wanted_one(completion, shown, task):
  assert score(completion, task).shown == shown


def test_no_answer_earns_full_marks_on_two_behaviours():
  answers = [GOLD, CLARIFY.answer, REFUSE.answer, "I can't. Which departure date?"]
  for answer in answers:
    full = [task.behavior for task in (EXECUTE, CLARIFY, REFUSE) if score(answer, task).total == 1]
    assert len(full) <= 1, answer


def test_graded_pays_the_share_of_right_arguments():
  three_of_four = calls(("search_flights", {**FLIGHT, "origin": "Bergen"}))
  assert score(three_of_four, EXECUTE, reward="graded").total == 0.75
  two_of_five = calls(("search_flights", {"origin": "Oslo", "destination": "Rome", "via": "Bonn"}))
  assert score(two_of_five, EXECUTE, reward="graded").total == pytest.approx(2 / 5)
  assert score(GOLD, EXECUTE, reward="graded").total == 1.0


def test_binary_pays_nothing_for_a_part():
  assert score(calls(("search_flights", {"origin": "Oslo"})), EXECUTE, reward="binary").total == 0
  assert score("Which city?", REFUSE, reward="binary").total == 0
  assert score(GOLD, EXECUTE, reward="binary").total == 1


def test_wrong_arguments_are_named_once_each():
  wrong = {"origin": "Bergen", "destination": "Rome", "max_price": 300, "via": "Bonn"}
  found = score(calls(("search_flights", wrong)), EXECUTE)
  assert found.error == "wrong_argument"
  assert found.wrong_arguments == ("origin", "departure_date", "via")


def test_every_number_can_be_set():
  weights = RewardWeights(
    exact=0.9, partial_execute=0.3, asks=0.8, partial_clarify=0.1, declines=0.7, partial_refuse=0.2
  )
  assert score(GOLD, EXECUTE, weights=weights).total == 0.9
  assert score(calls(("search_flights", {})), EXECUTE, weights=weights).total == 0.3
  assert score(CLARIFY.answer, CLARIFY, weights=weights).total == 0.8
  assert score(REFUSE.answer, CLARIFY, weights=weights).total == 0.1
  assert score(REFUSE.answer, REFUSE, weights=weights).total == 0.7
  assert score(CLARIFY.answer, REFUSE, weights=weights).total == 0.2


def test_contradicting_weights_are_rejected():
  with pytest.raises(ValueError, match="partial_execute must not exceed exact"):
    RewardWeights(exact=0.4)
  with pytest.raises(ValueError, match="--asks=nan must be a finite number at least 0"):
    RewardWeights(asks=float("nan"))


@pytest.mark.parametrize(
  ("completion", "full", "withheld"),
  [
    (GOLD, 1.0, 1.0),
    (f"<tool_call>\n{GOLD[1:-1]}\n</tool_call>", 1.0, 1.0),
    (GOLD[1:-1], 1.0, 0.8),
    (f"Here you are: {GOLD}", 1.0, 0.8),
    (f"```json\n{GOLD}\n```", 1.0, 0.8),
    (calls(("search_flights", {**FLIGHT, "origin": "Bergen"})), 0.5, 0.5),
    (f"```{calls(('search_flights', {**FLIGHT, 'origin': 'Bergen'}))}```", 0.5, 0.4),
    (calls(("get_weather_forecast", {"city": "Rome"}))[1:-1], 0.0, 0.0),
  ],
)
def test_a_format_bonus_is_withheld_from_forms_that_strict_refuses(completion, full, withheld):
  weights = RewardWeights(format_bonus=0.2)
  assert score(completion, EXECUTE, parse="auto").total == full
  found = score(completion, EXECUTE, parse="auto", weights=weights)
  assert found.total == pytest.approx(withheld)
  assert (found.error is None) == (withheld == 1.0)
  if full == 1.0:
    right = score(completion, EXECUTE, "binary", "auto", weights)
    assert right.total == pytest.approx(withheld)
    assert right.error == (None if withheld == 1.0 else "loose_form")


def test_a_format_bonus_leaves_questions_and_refusals_as_they_are():
  weights = RewardWeights(format_bonus=0.5)
  assert score(CLARIFY.answer, CLARIFY, parse="auto", weights=weights).total == 1.0
  assert score(REFUSE.answer, REFUSE, parse="auto", weights=weights).total == 1.0
  with pytest.raises(ValueError, match="format_bonus must leave a right call at least"):
    RewardWeights(format_bonus=0.6)


def test_unknown_options_are_rejected_with_the_valid_ones():
  with pytest.raises(ValueError, match="expected one of tiered"):
    score("x", EXECUTE, reward="golden")
  with pytest.raises(ValueError, match="expected one of strict, auto"):
    score("x", EXECUTE, parse="lenient")
