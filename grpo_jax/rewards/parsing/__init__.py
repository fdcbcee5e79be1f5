"""From a completion's text to the calls in it."""
