"""What must be the same for work to go on."""

from hf_posswap.results.parts import first_difference


def test_equal_settings_have_no_difference_whatever_json_made_of_them() -> None:
    assert first_difference({"a": [1, 2], "b": {"c": None}}, {"a": (1, 2), "b": {"c": None}}) is None


def test_the_innermost_name_is_told() -> None:
    assert first_difference({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 2, "d": 4}}) == ("d", 3, 4)
    assert first_difference({"a": {"c": 2}}, {"a": None}) == ("a", {"c": 2}, None)
    assert first_difference({}, {"a": 1}) == ("a", None, 1)
