"""Instructions: whether there is one, and in which language it is, judged by its script and its commonest words."""

import re
import unicodedata
from collections import Counter

# The commonest function words of each language, and verbs of household instructions. Words that two lists share decide nothing.
_WORDS = {
    "en": "the a an and or of to in on into onto from with at by it its is up down off out over under then while until your "
    "pick place put open close push pull move grasp take turn press reach slide lift insert stack pour wipe fold "
    "drawer door cup block bowl left right robot",
    "de": "der die das den dem des ein eine einen einem und oder zu zum zur im auf von mit bei aus nach dann ist nicht "
    "nimm lege stelle öffne schließe schiebe drücke ziehe bewege greife drehe hebe schublade tür tasse würfel schüssel links rechts",
    "fr": "le la les un une des du et ou à au aux dans sur sous de avec par puis est pas "
    "prends prendre place mets mettre ouvre ouvrir ferme fermer pousse pousser tire saisis tourne soulève tiroir porte tasse gauche droite",
    "es": "el la los las un una unos y o de del al en sobre con por para luego es no "
    "coge coger recoge toma pon poner coloca abre abrir cierra cerrar empuja empujar tira mueve gira levanta cajón "
    "puerta taza izquierda derecha",
    "it": "il lo la gli le un una uno e o di del della dei al alla in nel sul sulla con da poi è non "
    "prendi metti apri aprire chiudi chiudere spingi tira muovi afferra gira solleva cassetto porta tazza sinistra destra",
    "pt": "o a os as um uma e ou de do da dos ao no na nos em com por para depois é não "
    "pegue pega coloque abra abrir feche fechar empurre puxe mova gire levante gaveta porta xícara esquerda direita",
    "nl": "de het een en of van naar in op onder uit met bij dan is niet "
    "pak leg zet open sluit duw trek beweeg grijp draai til lade deur kop blok kom links rechts",
}
_LETTERS = {
    "ß": "de",
    "ä": "de",
    "ö": "de",
    "ü": "de",
    "ñ": "es",
    "¿": "es",
    "¡": "es",
    "ç": "fr",
    "ê": "fr",
    "œ": "fr",
    "ã": "pt",
    "õ": "pt",
}
_LISTS = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_PLACEHOLDERS = frozenset(
    {"none", "null", "nan", "na", "n/a", "todo", "tbd", "test", "unknown", "default", "dummy", "placeholder", "task", "instruction"}
    | {"no instruction", "untitled", "undefined", "xxx"}
)


def is_placeholder(text: str) -> bool:
    """Whether a sentence stands for a missing one: `none`, `TODO`, or no letter at all."""
    plain = text.strip().strip(".<>[]()\"'").strip().lower()
    return bool(text.strip()) and (plain in _PLACEHOLDERS or not any(character.isalpha() for character in text))


def language(text: str) -> str | None:
    """ISO code of a language in Latin script, the name of another script such as `cyrillic`, or None if the words do not tell."""
    letters = [character for character in text if character.isalpha()]
    scripts = Counter(unicodedata.name(character, "unknown").split()[0].split("-")[0].lower() for character in letters)
    for script, count in scripts.most_common(1):
        if script != "latin" and 2 * count > len(letters):
            return script
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", text).lower())
    scores = {name: float(sum(word in known for word in words)) for name, known in _LISTS.items()}
    for letter, name in _LETTERS.items():
        scores[name] += letter in text.lower()
    (first, best), (_, second) = sorted(scores.items(), key=lambda pair: -pair[1])[:2]
    return first if best > second else None
