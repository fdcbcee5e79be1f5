"""What counts as asking and as declining: the table of docs/rewards.md, row by row."""

from __future__ import annotations

import pytest

from grpo_jax.rewards.behavior import asks_for_missing, read_text
from grpo_jax.tasks.schema import ToolTask


@pytest.mark.parametrize(
  ("text", "kind"),
  [
    ("Sorry, I can't help with that.", "declines"),
    ("Sorry, none of my tools can do that.", "declines"),
    ("Sorry, I have no tool for that.", "declines"),
    ("Sorry, I won't help with that.", "declines"),
    ("Sorry, can't do that.", "declines"),
    ("I’m sorry, but I cannot assist with this request.", "declines"),
    ("I'm unable to do that.", "declines"),
    ("I must decline.", "declines"),
    ("Unfortunately, I am not able to book hotels.", "declines"),
    ("I don't have a tool for that.", "declines"),
    ("My tools can't send mail.", "declines"),
    ("That is not possible.", "declines"),
    ("That is beyond my abilities.", "declines"),
    ("I can't find a tool that does this.", "declines"),
    ("I must respectfully decline.", "declines"),
    ("There isn't a function available for that.", "declines"),
    ("That's not something I'm able to help with.", "declines"),
    ("That is outside the scope of what I do.", "declines"),
    ("As an assistant, I can't do that.", "declines"),
    ("I can't do that. Is there anything else I can help you with?", "declines"),
    ("Lo siento, no puedo ayudar con eso.", "declines"),
    ("Je ne peux pas faire cela.", "declines"),
    ("Das kann ich leider nicht tun.", "declines"),
    ("Ich kann dabei nicht helfen.", "declines"),
    ("Não posso ajudar com isso.", "declines"),
    ("Non posso farlo.", "declines"),
    ("Я не могу с этим помочь.", "declines"),
    ("抱歉，我不能帮助你。", "declines"),
    ("申し訳ありませんが、できません。", "declines"),
    ("Which city should I use?", "asks"),
    ("¿Qué ciudad?", "asks"),
    ("どの都市ですか？", "asks"),
    ("I can't search without a date. Which date?", "asks"),
    ("I can't find the date in your message. Which date?", "asks"),
    ("Sorry, which city?", "asks"),
    ("I can't help with that. Which city?", "hedging"),
    ("I can't, but could you tell me the city?", "hedging"),
    ("Sure, here it is.", "states"),
    ("Sorry.", "states"),
    ("I can't wait to help you with your flight!", "states"),
    ("I can't do it without the city.", "states"),
    # They agree or report, in the words of a refusal.
    ("No problem, the tool is running now.", "states"),
    ("I have no doubt that my tools work. Done.", "states"),
    ("I booked a table outside the restaurant.", "states"),
    ("My tools are ready, so don't worry.", "states"),
    ("The tool doesn't need a date.", "states"),
    ("You don't have to worry, I have access to everything.", "states"),
    ("I booked it, you can't miss it.", "states"),
    ("Sorry, you can't miss it.", "states"),
    ("I could not be happier to help. Done.", "states"),
    ("I can't help but agree. Done.", "states"),
    ("I can't say no to you. Done.", "states"),
    ("I cannot refuse that. Booked.", "states"),
    ("I won't hesitate to do that.", "states"),
    ("Is there anything else I can help you with?", "states"),
    ("The city is missing.", "states"),
    ("", "degenerate"),
    ("...", "degenerate"),
    ("no no no no no no no no no no no no", "degenerate"),
    ("a" * 1001, "degenerate"),
  ],
)
def test_texts_are_of_one_kind(text, kind):
  assert read_text(text).kind == kind


def clarify_task(**schemas: str) -> ToolTask:
  return ToolTask.from_row(
    {
      "prompt": "x",
      "tools": [
        {
          "name": "f",
          "parameters": {
            "type": "object",
            "properties": {name: {"description": text} for name, text in schemas.items()},
            "required": list(schemas),
          },
        }
      ],
      "reward_model": {"ground_truth": "Which one?"},
      "extra_info": {"missing": list(schemas)[:1], "behavior": "clarify"},
    }
  )


TASK = clarify_task(
  departure_date="Day on which the trip starts, ISO 8601.", origin="", destination="", cabin=""
)


@pytest.mark.parametrize(
  ("question", "verdict"),
  [
    ("Which departure_date should I use?", "asks"),
    ("What is the departureDate or departure date?", "asks"),
    ("On what date is your departure?", "asks"),
    ("Which departure dates?", "asks"),
    ("On which day does the trip start?", "asks"),
    ("I still need the departure date. Could you give it to me?", "asks"),
    ("Which departure date for your trip from this origin?", "asks"),
    ("What is the departure date (e.g. 2025-01-02)?", "asks"),
    ("When is the departure date, Mr. Smith?", "asks"),
    ("I need the departure date. Could you tell me?", "asks"),
    ("I need the departure date. Could you share it so that I can search?", "asks"),
    ("The departure date is 2 May. Could you tell me a joke?", "wrong_question"),
    ("Booked for the departure date 2 May. Could you confirm?", "wrong_question"),
    ("Which date?", "wrong_question"),
    ("What is the origin?", "wrong_question"),
    ("The departure date is clear. Shall I go on?", "wrong_question"),
    ("What is the origin, the destination and the departure date?", "asks_everything"),
  ],
)
def test_a_question_must_name_what_is_missing(question, verdict):
  assert asks_for_missing(read_text(question), TASK) == verdict


def test_names_of_small_words_need_quotes_or_a_description():
  task = clarify_task(to="Recipient of the mail")
  assert asks_for_missing(read_text("What do you want to do?"), task) == "wrong_question"
  assert asks_for_missing(read_text("What is `to`?"), task) == "asks"
  assert asks_for_missing(read_text("Who is the recipient of this mail?"), task) == "asks"


def test_camel_case_names_are_split_into_words():
  task = clarify_task(homeAddress="")
  assert asks_for_missing(read_text("What is your home address?"), task) == "asks"


def task_without_missing(question: str) -> ToolTask:
  properties = {"city": {}, "country": {}, "days": {}, "units": {}}
  parameters = {"properties": properties, "required": ["city", "country"]}
  return ToolTask.from_row(
    {
      "prompt": "x",
      "tools": [{"name": "f", "parameters": parameters}],
      "reward_model": {"ground_truth": question},
    }
  )


def test_without_missing_the_arguments_of_the_wanted_question_count():
  task = task_without_missing("Which city?")
  assert asks_for_missing(read_text("In what city?"), task) == "asks"
  assert asks_for_missing(read_text("In what country?"), task) == "wrong_question"
  everything = "What are the city, the country, the days and the units?"
  assert asks_for_missing(read_text(everything), task) == "asks_everything"


def test_when_the_wanted_question_names_none_any_required_argument_counts():
  task = task_without_missing("Where?")
  assert asks_for_missing(read_text("In what country?"), task) == "asks"
  assert asks_for_missing(read_text("For how many days?"), task) == "wrong_question"


def test_without_tools_a_telling_word_of_the_wanted_question_counts():
  task = ToolTask.from_row({"prompt": "x", "reward_model": {"ground_truth": "Which city is it?"}})
  assert asks_for_missing(read_text("What city?"), task) == "asks"
  assert asks_for_missing(read_text("Which one is it?"), task) == "wrong_question"
