"""The page of the settings says what the models say."""

from scripts.configuration_page import PAGE, page


def test_the_page_is_the_one_that_the_models_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m scripts.configuration_page"


def test_every_section_and_setting_is_on_the_page() -> None:
    text = page()
    for words in (
        "## Run",
        "## LoRA".replace("LoRA", "Lora"),
        "| `micro_batch` | an amount in tokens or null | `null` |",
    ):
        assert words in text
