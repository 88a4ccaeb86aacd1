"""Language: instructions of robot datasets are English, others are found, and what says nothing is empty."""

import pytest

from mimicvideo.benchmark.instructions import INSTRUCTIONS
from mimicvideo.data.language import foreign_language, is_empty

ENGLISH = [
    "pick up the red cube",
    "put the carrot on the plate",
    "open the top drawer and put the bowl inside",
    "close microwave",
    "Pick up the alphabet soup and place it in the basket.",
    "stack the green block on the yellow block",
    "reach",
    "pour almonds",
    "move sponge near apple",
    "put eggplant into pot or pan",
    "take the café mug to the left",
    "turn faucet anti-clockwise",
    "place 7up can upright",
    "wipe jalapeño sauce off the table",
    "lift eggplant",
    "la croix can",
    "end effector reaching brinjal",
    "Moved the orange towel",
    "separate the red lego from the blue ones",
    "hammer",
]
FOREIGN = {
    "de": ["nimm den roten Würfel", "Öffne die Schublade", "lege den Löffel auf den Tisch"],
    "es": ["recoge el bloque rojo", "abre el cajón", "pon la cuchara en la olla"],
    "fr": ["prends le cube rouge", "ouvre le tiroir du haut", "mets la tasse sur l'assiette"],
    "it": ["prendi il cubetto rosso", "apri il cassetto"],
    "pt": ["pegue o bloco vermelho", "abra a gaveta"],
    "nl": ["pak het rode blokje", "zet de lepel op het bord"],
    "script:CJK": ["拿起红色方块", "打开 drawer 抽屉上面的"],
    "script:HIRAGANA": ["あかいブロックをとって"],
    "script:CYRILLIC": ["возьми красный куб"],
    "script:DEVANAGARI": ["लाल घन उठाओ"],
    "script:ARABIC": ["التقط المكعب الأحمر"],
}


@pytest.mark.parametrize("text", [*ENGLISH, *INSTRUCTIONS.values()])
def test_english_instructions_are_left_alone(text):
    assert foreign_language(text) is None and not is_empty(text)


@pytest.mark.parametrize(("language", "text"), [(language, text) for language, texts in FOREIGN.items() for text in texts])
def test_other_languages_are_found(language, text):
    assert foreign_language(text) == language and not is_empty(text)


@pytest.mark.parametrize("text", ["", "  ", "\n", "None", "null", "N/A", "nan", "...", "123", "-", "No label.", "unlabelled"])
def test_what_says_nothing_is_empty(text):
    assert is_empty(text)


def test_names_alone_decide_nothing():
    assert foreign_language("kuka") is None and foreign_language("ABC 12") is None
