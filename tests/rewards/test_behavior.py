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
    # A request needs no question mark.
    ("Please provide the destination city.", "asks"),
    ("Let me know the date and I'll book it.", "asks"),
    ("I need the amount first.", "asks"),
    ("To send it I'll need your address.", "asks"),
    ("You still need to specify the date.", "asks"),
    ("If you tell me the date, I can look it up.", "asks"),
    ("Which city should I use.", "asks"),
    ("I can't do it yet, please tell me the date.", "asks"),
    ("I don't know the date yet. When?", "asks"),
    ("I can only search by date. Which one?", "asks"),
    ("The departure date is missing. Please provide it.", "asks"),
    ("I need a moment.", "states"),
    ("You don't need to tell me the date.", "states"),
    ("Let me know if you need anything.", "states"),
    ("I will now call search_flights.", "states"),
    # In the words that people and models use.
    ("That's not something I can do with these tools.", "declines"),
    ("I won't help bill someone for work that was never done.", "declines"),
    ("I can't request leave for Dan without his knowledge.", "declines"),
    ("I'm sorry, but I can't assist with that.", "declines"),
    ("None of the functions provided can do this.", "declines"),
    ("The given functions do not include a way to order food.", "declines"),
    ("As an AI, I am not able to order food.", "declines"),
    ("I'd rather not do that.", "declines"),
    ("Cannot assist with that.", "declines"),
    ("I have no way of closing accounts.", "declines"),
    ("It isn't supported.", "declines"),
    ("My only tool plays songs.", "declines"),
    ("I can't prescribe anything. Would you like me to book an appointment instead?", "declines"),
    ("I can't do this. Would you like me to book an appointment?", "declines"),
    ("I can't order coffee, but I can set an alarm if you tell me the time.", "declines"),
    ("I can't help with that. Please let me know if you have any other questions.", "declines"),
    ("I can't order food. If you need a ride, please provide the details.", "declines"),
    ("I can't do that. Please give me the city.", "hedging"),
    # It sounds like declining, or declines and then does it.
    ("I can't find your date; which one?", "asks"),
    ("No problem, I cannot wait.", "states"),
    ("I won't tell anyone! Sent.", "states"),
    ("To cancel it, log in to your account and choose Cancel.", "states"),
    ("I can't write poems, but here's one: roses are red.", "states"),
    ("I can't restring it. Follow these steps: cut out the old strings.", "states"),
    ("I shouldn't, so I just sent it.", "states"),
    ("I can't, but I have booked it.", "states"),
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
    ("Please provide the departure date.", "asks"),
    ("The departure date is missing. Please provide it.", "asks"),
    ("I need:\n1. the cabin\n2. the departure date", "asks"),
    ("I need the cabin.\n- the departure date", "wrong_question"),
    ("When would you like to leave?", "asks"),
    ("What day would you like to leave?", "asks"),
    ("Where would you like to go, and when?", "asks"),
    ("What should I do when it is done?", "wrong_question"),
    ("Please give me more details.", "wrong_question"),
    ("Please provide the origin and the cabin.", "wrong_question"),
    ("Please provide the origin, the cabin and the departure date.", "asks_everything"),
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


def test_an_argument_is_named_by_its_kind_and_without_words_like_number():
  task = clarify_task(party_size="Number of people")
  task.tools[0].parameters["properties"]["party_size"]["type"] = "integer"
  assert asks_for_missing(read_text("How many will you be?"), task) == "asks"
  assert asks_for_missing(read_text("How much is it?"), task) == "wrong_question"
  task = clarify_task(tracking_number="", carrier="")
  assert asks_for_missing(read_text("What is your tracking ID?"), task) == "asks"
  task = clarify_task(to_unit="", from_unit="")
  assert asks_for_missing(read_text("To which unit?"), task) == "asks"
  assert asks_for_missing(read_text("Which unit is it from?"), task) == "wrong_question"
  task = clarify_task(recipient="", amount="", day="", city="")
  everything = "Who is it for, how much is it, when is it and where?"
  assert asks_for_missing(read_text(everything), task) == "asks_everything"


def test_an_argument_is_named_by_two_of_its_choices():
  task = clarify_task(cabin="", meal="")
  task.tools[0].parameters["properties"]["cabin"]["enum"] = ["economy", "business", "first"]
  assert asks_for_missing(read_text("Economy or business?"), task) == "asks"
  assert asks_for_missing(read_text("Is it for business?"), task) == "wrong_question"


def test_what_a_description_says_of_other_arguments_asks_for_none_of_them():
  task = clarify_task(phone="Telephone number of the applicant", applicant="", day="")
  question = "Please give me the telephone number of the applicant and the day."
  assert asks_for_missing(read_text(question), task) == "asks"


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
