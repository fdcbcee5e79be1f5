"""Ten tools for held-out tasks; their names, argument names and values are nowhere in training.

No argument here is a boolean: `true` and `false` are values of the training tools already.
"""

from __future__ import annotations

from grpo_jax.tasks.synthetic.recipes import Argument, Recipe, phrases, words
from grpo_jax.tasks.synthetic.training_tools import numbers, tenths

EVEN = 0
INTEGER = {"type": "integer"}
TOWNS = words(
  "Brighton Galway Bruges Lucca Siena Toledo Granada Salzburg Ghent Delft Bergen Tromso Turku "
  "Gdansk Kotor Ohrid Varna Tartu Riga"
)
PEOPLE = words(
  "Amara Bruno Chloe Dmitri Elena Farid Greta Hiro Ingrid Jonas Kofi Leila Mateo Nadia Omar Priya "
  "Quentin Rosa Stefan Tariq Uma Viktor Wanda Yusuf Zelda"
)
STATIONS = words(
  "Riverside Westgate Harbor Museum Stadium Cathedral Airport Lakeview Oakwood Parkway Hillcrest "
  "Midtown Chinatown Seaside Greenfield Broadway"
)
TOPPINGS = words(
  "mushrooms olives onions peppers spinach bacon ham pineapple basil garlic tomatoes artichokes "
  "anchovies corn"
)
INGREDIENTS = words(
  "chicken rice lentils tofu eggplant zucchini salmon beans carrots ginger coconut chickpeas "
  "potatoes noodles"
)
TITLES = phrases(
  "water plants|feed hamster|buy milk|pay rent|call dentist|take medicine|charge laptop|"
  "return books|defrost freezer|renew passport|mow lawn|iron shirts"
)
BODIES = phrases(
  "running late|call back|dinner ready|meet outside|bus delayed|bring snacks|stay calm|"
  "doors locked|keys found|almost there|lunch tomorrow|package arrived"
)
COUNTRIES = words(
  "Iceland Norway Chile Peru Kenya Ghana Nepal Vietnam Malta Cyprus Jordan Oman Fiji Samoa"
)
ZONES = words(
  "kitchen bedroom nursery hallway attic basement lounge bathroom garage veranda"
)  # fmt: skip
TOPICS = words(
  "budget hiring roadmap onboarding security design strategy pricing branding logistics"
)
ARTISTS = words(
  "Velvetine Moonraker Kestrel Ondine Sablewood Pharoah Lumina Juniper Tamsin Corvus"
)  # fmt: skip


def _enum(name: str, choices: str, cues: str) -> Argument:
  return Argument(name, "text", words(choices), cues, schema={"enum": choices.split()})


UNSEEN_RECIPES: tuple[Recipe, ...] = (
  Recipe(
    name="reserve_hotel",
    description="Reserve a hotel in a town",
    required=(
      Argument("town", "text", TOWNS, "in the town of {v}|in the town {v}", natural="in {v}"),
      Argument("nights", "count", numbers(2, 29, parity=EVEN), "for {v} nights|staying {v} nights"),
    ),
    optional=(
      Argument("guests", "count", numbers(2, 14, parity=EVEN), "for {v} guests"),
    ),
    do="reserve a hotel|reserve me a hotel|reserve a hotel stay|make a hotel reservation",
    thing="a hotel|a hotel reservation",
    short="hotel|reserve hotel|hotel reservation|hotel stay",
  ),
  Recipe(
    name="order_pizza",
    description="Order a pizza",
    required=(
      _enum("size", "small medium large", "in {v} size|in the size {v}|of size {v}"),
      Argument("toppings", "list", TOPPINGS, "with {v} as toppings|having the toppings {v}"),
    ),
    optional=(
      Argument(
        "quantity", "measure", numbers(2, 27, parity=EVEN),
        "in a quantity of {v}|for a quantity of {v}", schema=INTEGER,
      ),
    ),
    do="order a pizza|order me a pizza|order pizza|place a pizza order",
    thing="a pizza|pizza",
    short="pizza|order pizza|pizza order|one pizza",
  ),
  Recipe(
    name="create_reminder",
    description="Create a reminder",
    required=(
      Argument(
        "title", "text", TITLES, "with the title {v}|under the title {v}|that has the title {v}",
        quoted=True,
      ),
      Argument(
        "minutes", "count", numbers(10, 100, parity=EVEN), "in {v} minutes|after {v} minutes"
      ),
    ),
    optional=(_enum("priority", "low high urgent", "with {v} priority|of {v} priority"),),
    do="create a reminder|create a new reminder|add a reminder|set up a reminder",
    thing="a reminder|a new reminder",
    short="reminder|create reminder|new reminder|add reminder",
  ),
  Recipe(
    name="find_recipe",
    description="Find a recipe",
    required=(
      Argument(
        "ingredients", "list", INGREDIENTS, "from the ingredients {v}|using the ingredients {v}"
      ),
    ),
    optional=(
      _enum("diet", "vegan vegetarian keto", "for a {v} diet|on a {v} diet"),
      Argument(
        "servings", "count", numbers(2, 14, parity=EVEN), "for {v} servings|making {v} servings"
      ),
    ),
    do="find a recipe|find me a recipe|find some recipe|dig up a recipe",
    thing="a recipe|some recipe|a good recipe",
    short="recipe|find recipe|recipe ideas|any recipe",
  ),
  Recipe(
    name="book_taxi",
    description="Book a taxi",
    required=(
      Argument(
        "pickup", "text", STATIONS, "from the pickup {v}|with pickup at {v}|with the pickup at {v}",
        natural="from {v}",
      ),
      Argument(
        "dropoff", "text", STATIONS, "to the dropoff {v}|with dropoff at {v}|to dropoff {v}",
        natural="to {v}",
      ),
    ),
    optional=(
      Argument("riders", "count", numbers(2, 9, parity=EVEN), "for {v} riders|carrying {v} riders"),
    ),
    do="book a taxi|book me a taxi|book a taxi ride|get me a taxi",
    thing="a taxi|a taxi ride",
    short="taxi|book taxi|taxi ride|taxi booking",
  ),
  Recipe(
    name="estimate_shipping",
    description="Estimate a shipping cost",
    required=(
      Argument(
        "weight", "measure", (*numbers(2, 60, parity=EVEN), *tenths(11, 300, parity=EVEN)),
        "for a weight of {v}|at a weight of {v}",
      ),
      Argument(
        "country", "text", COUNTRIES, "to the country {v}|to the country of {v}", natural="to {v}"
      ),
    ),
    optional=(
      Argument(
        "courier", "text", words("Swiftpost Nordpak Bluecargo Parcelio Rocketbox"),
        "by the courier {v}|using the courier {v}",
      ),
    ),
    do="estimate the shipping cost|estimate shipping|estimate the shipping|get a shipping estimate",
    thing="a shipping estimate|the shipping cost",
    short="shipping estimate|shipping cost|estimate shipping|shipping",
  ),
  Recipe(
    name="send_message",
    description="Send a message",
    required=(
      Argument(
        "recipient", "text", PEOPLE, "to the recipient {v}|to recipient {v}", natural="to {v}"
      ),
      Argument(
        "body", "text", BODIES, "with the body {v}|whose body is {v}|that has the body {v}",
        quoted=True,
      ),
    ),
    optional=(_enum("channel", "sms email chat", "over the {v} channel|on the {v} channel"),),
    do="send a message|send this message|send out a message|shoot a message",
    thing="a message sent",
    short="message|send message|new message|send a message",
  ),
  Recipe(
    name="adjust_thermostat",
    description="Adjust the thermostat of a zone",
    required=(
      Argument(
        "zone", "text", ZONES, "in the {v} zone|for the {v} zone|of the zone {v}",
        natural="in the {v}",
      ),
      Argument(
        "temperature", "measure",
        (*numbers(11, 32, parity=EVEN), *tenths(140, 290, parity=EVEN)[::3]),
        "to a temperature of {v}|to the temperature {v}",
      ),
    ),
    optional=(_enum("mode", "heating cooling automatic", "in {v} mode|using {v} mode"),),
    do="adjust the thermostat|adjust thermostat|change the thermostat|turn the thermostat",
    thing="the thermostat adjusted|a thermostat adjustment",
    short="thermostat|adjust thermostat|thermostat adjustment",
  ),
  Recipe(
    name="schedule_meeting",
    description="Schedule a meeting",
    required=(
      Argument(
        "topic", "text", TOPICS, "on the topic {v}|on the topic of {v}|about the topic {v}",
        natural="about {v}",
      ),
    ),
    optional=(
      Argument("attendees", "list", PEOPLE, "inviting the attendees {v}|with {v} as attendees"),
      Argument(
        "duration", "measure", numbers(15, 130, 5, parity=EVEN),
        "for a duration of {v}|of duration {v}", schema=INTEGER,
      ),
    ),
    do="schedule a meeting|schedule the meeting|schedule us a meeting|plan a meeting",
    thing="a meeting|a meeting scheduled",
    short="meeting|schedule meeting|new meeting",
  ),
  Recipe(
    name="play_music",
    description="Play music by an artist",
    required=(
      Argument(
        "artist", "text", ARTISTS, "by the artist {v}|from the artist {v}|of the artist {v}",
        natural="by {v}",
      ),
    ),
    optional=(
      Argument(
        "genre", "text", words("jazz blues reggae techno folk metal soul disco"),
        "in the genre {v}|of the {v} genre",
      ),
      Argument(
        "volume", "measure", numbers(10, 100, parity=EVEN), "at volume {v}|at a volume of {v}",
        schema=INTEGER,
      ),
    ),
    do="play music|play some music|play me music|put on music",
    thing="music|some music",
    short="music|play music|some music|play",
  ),
)  # fmt: skip
