"""The five tools of the training tasks and the values that their requests mention."""

from __future__ import annotations

from grpo_jax.tasks.synthetic.recipes import Argument, Recipe, phrases, words


def numbers(start: int, stop: int, step: int = 1, *, parity: int) -> tuple[int, ...]:
  """The integers of `range(start, stop, step)` whose digit sum has the given parity.

  Training tasks use odd digit sums and unseen tools even ones: no number is in both, and yet
  either holds numbers of every size and every last digit.
  """
  return tuple(n for n in range(start, stop, step) if sum(map(int, str(n))) % 2 == parity)


def tenths(start: int, stop: int, *, parity: int) -> tuple[float, ...]:
  """Like `numbers`, with one decimal that is not zero: from `start / 10` below `stop / 10`."""
  return tuple(n / 10 for n in numbers(start, stop, parity=parity) if n % 10)


ODD = 1
AMOUNTS = (
  *numbers(10, 1000, 10, parity=ODD),
  *numbers(11, 200, 3, parity=ODD),
  *tenths(25, 999, parity=ODD)[::9],
)
CITIES = (
  *words(
    "Oslo Lima Nairobi Toronto Madrid Berlin Dublin Prague Vienna Lisbon Athens Cairo Mumbai Seoul "
    "Osaka Sydney Denver Boston Chicago Havana Bogota Quito Accra Dakar Tunis Warsaw Helsinki "
    "Stockholm Geneva Zurich Milan Naples Porto Seville Krakow Budapest Belgrade Sofia Ankara Doha "
    "Manila Jakarta Hanoi Bangkok Delhi"
  ),
  *phrases("San Francisco|Buenos Aires|Santa Cruz|Kuala Lumpur|Tel Aviv"),
)
LANGUAGES = words(
  "French German Spanish Italian Portuguese Dutch Swedish Danish Polish Turkish Arabic Hindi "
  "Korean Japanese Greek Hebrew Finnish Czech Hungarian Swahili"
)
CURRENCIES = words(
  "USD EUR GBP JPY CHF CAD AUD NZD SEK NOK DKK PLN CZK HUF TRY INR KRW MXN BRL ZAR SGD HKD"
)
TEXTS = phrases(
  "good morning|thank you|happy birthday|see you soon|where are you|good luck|nice work|well done|"
  "no problem|excuse me|how are you|sleep well|safe travels|welcome home|best wishes|so quiet|"
  "very funny|fresh bread|old friends|open window|blue sky|red umbrella|green garden|my brother"
)
DATASETS = phrases(
  "sales|traffic|revenue|visitors|energy|rainfall|inventory|payroll|subscriptions|churn|clicks|"
  "refunds|emissions|attendance|harvest|web traffic|store revenue|ticket sales|power usage"
)
METRICS = words("mean median variance minimum maximum total deviation average")
GROUPINGS = words("region month product branch supplier season department gender")

TRAINING_RECIPES: tuple[Recipe, ...] = (
  Recipe(
    name="get_weather_forecast",
    description="Get the weather of a city",
    required=(
      Argument(
        "city", "text", CITIES,
        "in the city of {v}|for the city of {v}|for the city {v}|in the city {v}|in {v} city",
        natural="in {v}|for {v}",
      ),
    ),
    optional=(
      Argument("days", "count", numbers(2, 22, parity=ODD), "for the next {v} days|over {v} days"),
      Argument(
        "units", "text", ("celsius", "fahrenheit"), "in {v} units|in units of {v}|with {v} units",
        schema={"enum": ["celsius", "fahrenheit"]},
      ),
    ),
    do=(
      "get the weather forecast|get me the weather forecast|get the weather|"
      "check the weather forecast|tell me the weather"
    ),
    thing="the weather forecast|a weather forecast|the weather|the forecast",
    short="weather forecast|weather|forecast|get weather|get weather forecast|get forecast",
  ),
  Recipe(
    name="search_flights",
    description="Search flights",
    required=(
      Argument(
        "origin", "text", CITIES, "from the origin {v}|with origin {v}|leaving from the origin {v}",
        natural="from {v}|leaving {v}",
      ),
      Argument(
        "destination", "text", CITIES, "to the destination {v}|with destination {v}",
        natural="to {v}|going to {v}",
      ),
    ),
    optional=(
      Argument("passengers", "count", numbers(2, 17, parity=ODD), "for {v} passengers"),
      Argument("direct", "flag", (True, False)),
    ),
    do="search flights|search for flights|search some flights|look up flights|look for flights",
    thing="flights|some flights|a list of flights",
    short="flights|search flights|flights search|flight search|look up flights",
  ),
  Recipe(
    name="translate_text",
    description="Translate text into a language",
    required=(
      Argument(
        "text", "text", TEXTS, "the text {v}|the following text {v}|this text {v}|text {v}",
        natural="{v}", quoted=True,
      ),
      Argument(
        "target_language", "text", LANGUAGES,
        "into the target language {v}|to the target language {v}|into target language {v}",
        natural="into {v}|to {v}",
      ),
    ),
    optional=(
      Argument(
        "tone", "text", ("polite", "neutral", "playful"), "in a {v} tone|with a {v} tone",
        schema={"enum": ["polite", "neutral", "playful"]},
      ),
    ),
    do="translate",
    thing="",  # "a translation the text ..." is no English
    short="translate|translation|translate this",
  ),
  Recipe(
    name="currency_convert",
    description="Convert a currency",
    required=(
      Argument(
        "source_currency", "text", CURRENCIES,
        "from the source currency {v}|from source currency {v}", natural="from {v}",
      ),
      Argument(
        "target_currency", "text", CURRENCIES,
        "to the target currency {v}|into the target currency {v}", natural="to {v}|into {v}",
      ),
    ),
    optional=(
      Argument(
        "amount", "measure", AMOUNTS,
        "for the amount {v}|for an amount of {v}|with an amount of {v}",
      ),
    ),
    do="convert currency|do a currency conversion|convert some currency|run a currency conversion",
    thing="a currency conversion",
    short="convert currency|currency conversion|currency convert|convert",
  ),
  Recipe(
    name="get_statistics",
    description="Get statistics of a dataset",
    required=(
      Argument(
        "dataset", "text", DATASETS,
        "of the dataset {v}|for the dataset {v}|from the dataset {v}|on the {v} dataset",
        natural="of {v}|on {v}",
      ),
      Argument("metrics", "list", METRICS, "using the metrics {v}|showing the metrics {v}"),
    ),
    optional=(
      Argument("grouping", "text", GROUPINGS, "grouping by {v}|with {v} grouping"),
    ),
    do=(
      "get statistics|get the statistics|get me some statistics|compute statistics|"
      "pull the statistics"
    ),
    thing="statistics|the statistics|some statistics",
    short="statistics|get statistics|stats|get stats",
  ),
)  # fmt: skip
