"""Which instructions are empty and which are not English: script, letters and common words, since a few words are all there is."""

import re
import unicodedata

# What people and converters write where there is no instruction.
_NOTHING = {
    "",
    "none",
    "null",
    "nan",
    "n a",
    "na",
    "no instruction",
    "no label",
    "unlabeled",
    "unlabelled",
    "unknown",
    "empty",
    "tbd",
    "todo",
}

# Words that instructions in these languages use and that are no English words.
_FOREIGN = {
    "de": """
        der das den dem des ein eine einen einem einer und oder auf unter über neben zum zur aus vom nicht mit nimm nehme lege
        leg stelle stell setze öffne schließe schliesse bewege schiebe drücke ziehe hebe drehe greife greif gib bringe roten
        rote rotes blauen blaue blaues grünen grüne grünes gelben gelbe würfel schublade tasse teller schüssel tür tisch flasche
        löffel klotz hin dann ins im
        """,
    "es": """
        el los las un una unos unas del al y con sobre dentro desde hacia por para encima debajo junto recoge recoger coge
        agarra toma pon poner coloca colocar mueve mover abre abrir cierra cerrar empuja tira levanta lleva gira dale rojo roja
        azul verde amarillo amarilla bloque cubo cajón taza plato mesa puerta botella cuchara olla caja izquierda derecha
        """,
    "fr": """
        le les une des du au aux et avec sur sous dans vers depuis près prends prendre saisis mets mettre pose poser déplace
        déplacer ouvre ouvrir ferme fermer pousse pousser tire lève tourne amène rouge bleu bleue vert verte jaune tiroir tasse
        assiette porte bouteille cuillère boîte gauche droite puis
        """,
    "it": """
        il gli le una uno della dello del nel nella sul sulla dal dalla e con sotto verso prendi prendere metti mettere sposta
        spostare apri aprire chiudi chiudere spingi tira solleva gira afferra rosso rossa blu verde giallo gialla blocco cubetto
        cassetto tazza piatto tavolo porta bottiglia cucchiaio scatola sinistra destra
        """,
    "pt": """
        o os as um uma do da dos das no na nos nas ao com sobre dentro embaixo pegue pegar coloque colocar mova mover abra abrir
        feche fechar empurre puxe levante gire leve vermelho vermelha azul verde amarelo amarela bloco gaveta xícara prato mesa
        porta garrafa colher caixa esquerda direita
        """,
    "nl": """
        het een en op onder naast naar uit pak neem zet leg schuif duw trek draai verplaats sluit rode blauwe groene gele blokje
        lade kopje bord deur tafel fles lepel doos linker rechter
        """,
    "tr": """
        bir ve ile üstüne altına içine al kırmızı mavi yeşil sarı bloğu küpü koy kapat aç it çek kaldır
        """,
    "pl": """
        i na do z pod obok weź podnieś połóż otwórz zamknij przesuń pchnij czerwony niebieski zielony żółty klocek szufladę
        kubek talerz
        """,
    "vi": """
        nhặt đặt lấy mở đóng đẩy kéo di chuyển khối màu đỏ xanh vàng lên vào trên
        """,
    "id": """
        ambil letakkan taruh buka tutup dorong tarik pindahkan balok merah biru hijau kuning ke di dari dan yang
        """,
}
_ENGLISH_WORDS = """
    the a an and or of to from in into on onto off over under with by at out up down as no i it its that this then next near between
    behind front inside outside top bottom left right side middle corner pick place put take move push pull lift open close turn
    grab grasp hold drop slide rotate flip fold unfold press pour stack hand bring remove insert reach lower raise wipe sweep set
    get go lay stand cover hit screw unscrew plug unplug hang wash clean stir cut throw twist align point knock straighten spread
    reset center make do not pose red blue green yellow orange purple pink black white gray grey brown silver small big large block
    cube ball box bowl cup mug plate pot pan lid drawer door table cloth towel spoon fork knife bottle can object handle button
    switch sink stove microwave basket rack arm robot gripper end toy tire
"""
_ENGLISH = set(_ENGLISH_WORDS.split())
_WORDS = {language: set(words.split()) - _ENGLISH for language, words in _FOREIGN.items()}
_LETTERS = {
    "de": "äöüß",
    "es": "ñ¿¡",
    "fr": "àâçèêëîïôœùû",
    "pt": "ãõâêçáí",
    "it": "àèìòù",
    "tr": "ğışçö",
    "pl": "ąćęłńśźż",
    "vi": "ăđơưạảấầậắặẹểệọốộớợủứửự",
}


def is_empty(text: str) -> bool:
    """Whether an instruction says nothing: no letters, or a word that stands for a missing one."""
    words = " ".join(re.findall(r"[^\W\d_]+", text.lower()))
    return words in _NOTHING


def foreign_language(text: str) -> str | None:
    """The language of an instruction that is not English, or None.

    Returns:
        A two-letter code; `script:` and a name such as `CJK` or `CYRILLIC` if more than a third of the letters are not Latin; None if the
        text is English, or if nothing in it decides: names of things alone are left alone.
    """
    scripts = [unicodedata.name(letter, "UNKNOWN").split()[0] for letter in text if letter.isalpha()]
    others = [script for script in scripts if script not in ("LATIN", "FULLWIDTH", "MODIFIER", "MASCULINE", "FEMININE", "MICRO")]
    if 3 * len(others) > len(scripts):
        return f"script:{max(sorted(set(others)), key=others.count)}"
    words = re.findall(r"[^\W\d_]+", text.lower())
    english = sum(word in _ENGLISH for word in words)
    votes = {
        language: sum(word in known or any(letter in _LETTERS.get(language, "") for letter in word) for word in words)
        for language, known in _WORDS.items()
    }
    best = max(sorted(votes), key=lambda language: votes[language])
    return best if votes[best] > english else None
