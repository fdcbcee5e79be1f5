from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.rewards.matching.values import equal_values

DATE_TIME = {"type": "string", "format": "date-time"}
POINT = {
  "type": "object",
  "properties": {"x": {"type": "number"}, "unit": {"type": "string", "default": "m"}},
}
TREE = {"$ref": "#/$defs/node"}
ROOT = {
  "$defs": {
    "node": {
      "type": "object",
      "properties": {"n": {"type": "integer"}, "child": {"$ref": "#/$defs/node"}},
    }
  }
}


@pytest.mark.parametrize(
  ("given", "wanted", "schema", "same"),
  [
    (5, 5.0, {"type": "number"}, True),
    (5.0, 5, {"type": "number"}, True),
    (5.0, 5, {"type": "integer"}, False),
    (5.0, 5, {"type": ["integer", "null"]}, False),
    (5.0, 5, None, True),
    (True, 1, {"type": "integer"}, False),
    (1, True, {"type": "boolean"}, False),
    ("5", 5, {"type": "integer"}, False),
    (0, False, None, False),
    (None, None, None, True),
    (None, "", None, False),
    ("Oslo", "oslo", {"type": "string"}, False),
    (" Oslo\n", "Oslo", {"type": "string"}, True),
    ("caf\u00e9", "cafe\u0301", {"type": "string"}, True),
    ("2025-01-02", "2025-1-2", {"type": "string", "format": "date"}, False),
    ("2025-01-02T10:00:00Z", "2025-01-02T11:00:00+01:00", DATE_TIME, True),
    ("2025-01-02T10:00:00Z", "2025-01-02T10:00:00+01:00", DATE_TIME, False),
    ("noon", "midday", DATE_TIME, False),
    ([1, 2], [2, 1], {"type": "array"}, False),
    ([1, 2.0], [1.0, 2], {"type": "array", "items": {"type": "number"}}, True),
    ([1, 2.0], [1, 2], {"type": "array", "items": {"type": "integer"}}, False),
    ({"x": 1}, {"x": 1.0, "unit": "m"}, POINT, True),
    ({"x": 1}, {"x": 1.0, "unit": "km"}, POINT, False),
    ({"x": 1, "y": 1}, {"x": 1}, POINT, False),
    ({"n": 1, "child": {"n": 2.0}}, {"n": 1, "child": {"n": 2}}, TREE, False),
    ({"n": 1, "child": {"n": 2}}, {"n": 1, "child": {"n": 2}}, TREE, True),
    (2.0, 2, {"anyOf": [{"type": "integer"}, {"type": "string"}]}, False),
    (2.0, 2, {"anyOf": [{"type": "integer"}, {"type": "number"}]}, True),
  ],
)
def test_values_are_compared_by_type_and_value(given, wanted, schema, same):
  assert equal_values(given, wanted, schema, ROOT) is same


NO_TEXT = {"anyOf": [{"type": "integer"}, {"type": "null"}]}


@pytest.mark.parametrize(
  ("given", "wanted", "schema", "same"),
  [
    ("Oslo", "Oslo", NO_TEXT, True),
    ("Oslo", "Bergen", NO_TEXT, False),
    (" Oslo", "Oslo", NO_TEXT, True),  # as if the schema said nothing
    ("5", 5.0, NO_TEXT, False),
    (True, True, NO_TEXT, True),
    (True, 1.0, NO_TEXT, False),
    ({"a": 1.5}, {"a": 1.5}, {"type": "object", "properties": {"a": NO_TEXT}}, True),
    ([1.5, "x"], [1.5, "x"], {"type": "array", "items": NO_TEXT}, True),
    ([1.5, "x"], [1.5, "y"], {"type": "array", "items": NO_TEXT}, False),
    (1, 1, {"$ref": "#/$defs/loop"}, True),
    (1, 2, {"$ref": "#/$defs/loop"}, False),
    (1, True, {"$ref": "#/$defs/loop"}, False),
    ("x", "x", {"oneOf": [{"enum": [i]} for i in range(16)] + [{"type": "string"}]}, True),
    (" x", "x", {"oneOf": [{"type": "null"}] * 16 + [{"type": "string"}]}, True),
  ],
)
def test_alternatives_that_do_not_take_the_wanted_value_allow_it(given, wanted, schema, same):
  root = {"$defs": {"loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/loop"}]}}}
  assert equal_values(given, wanted, schema, root) is same


JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=False, allow_infinity=False)
  | st.text(max_size=4),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
  ),
  max_leaves=8,
)
TYPES = ["string", "integer", "number", "boolean", "null", "array", "object", "dict", "int", "any"]
PLAIN_SCHEMAS = st.fixed_dictionaries(
  {},
  optional={
    "type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), max_size=3),
    "format": st.just("date-time"),
    "default": JSON,
  },
) | st.sampled_from("abc").map(lambda name: {"$ref": f"#/$defs/{name}"})
SCHEMAS = st.recursive(
  PLAIN_SCHEMAS,
  lambda inner: st.fixed_dictionaries(
    {},
    optional={
      "anyOf": st.lists(inner, max_size=3),
      "oneOf": st.lists(inner, min_size=1, max_size=3),
      "items": inner,
      "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
      "additionalProperties": inner,
      "type": st.sampled_from(TYPES),
    },
  ),
  max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(value=JSON, schema=SCHEMAS, definitions=st.dictionaries(st.sampled_from("abc"), SCHEMAS))
def test_a_value_equals_itself_whatever_the_schema_says(value, schema, definitions):
  root = {"$defs": definitions}
  assert equal_values(copy.deepcopy(value), value, schema, root)


def test_a_value_as_deep_as_a_completion_may_be_equals_itself_under_alternatives():
  value: object = "x"
  for _ in range(32):
    value = [value]
  node = {"anyOf": [{"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "null"}]}]}
  assert equal_values(copy.deepcopy(value), value, node, node)


@pytest.mark.parametrize(
  "schema",
  ["string", 5, {"type": 7}, {"properties": []}, {"$ref": "#/$defs/loop"}, {"anyOf": {}}],
)
def test_unusable_schemas_allow_any_value(schema):
  root = {"$defs": {"loop": {"$ref": "#/$defs/loop"}}}
  assert equal_values({"a": [1]}, {"a": [1]}, schema, root)
  assert not equal_values({"a": [1]}, {"a": [2]}, schema, root)


def test_nested_alternatives_are_settled_once_each():
  # Alternatives that differ only deep down, and one that refers to nothing but itself: trying every
  # path would take 4^12 and 2^64 comparisons.
  fields = {"left": {"$ref": "#/$defs/tree"}, "right": {"$ref": "#/$defs/tree"}}
  node = {"type": "object", "properties": fields}
  loop = {"$ref": "#/$defs/loop"}
  root = {
    "$defs": {
      "tree": {"anyOf": [node, {**node}, {**node}, {**node}, {"type": "integer"}]},
      "loop": {"anyOf": [loop, {**loop}]},
    }
  }

  def tree(depth: int, leaf: int) -> object:
    return {"left": 1, "right": tree(depth - 1, leaf)} if depth else leaf

  schema = {"$ref": "#/$defs/tree"}
  assert equal_values(tree(12, 5), tree(12, 5), schema, root)
  assert not equal_values(tree(12, 5), tree(12, 6), schema, root)
  assert not equal_values(tree(12, 5.0), tree(12, 5), schema, root)
  assert not equal_values(1, 2, loop, root)


def test_text_that_decomposes_the_most_still_equals_its_parts():
  whole = "\u1f82"  # one character that decomposes into four
  parts = "\u03b1\u0313\u0300\u0345"
  assert equal_values(parts, whole) and equal_values(whole, parts)


def test_depth_is_bounded():
  value: object = 1
  for _ in range(200):
    value = [value]
  assert equal_values(value, value) is False
