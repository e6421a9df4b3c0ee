"""In which of the starter set's languages a request is, by its script and its small words.

Good enough to choose the language of a sentence, and never more than that: what is not told apart
counts as English. Knows nothing of models.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

ENGLISH = "en"
_SCRIPTS: Mapping[str, str] = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CJK": "zh",
    "ARABIC": "ar",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "THAI": "th",
    "CYRILLIC": "ru",
}
"""First words of Unicode names, by the language that counts for them."""
_WORDS: Mapping[str, str] = {
    "en": "the a an of to and is in it my i you how do what for with that this can me on without",
    "de": (
        "der die das ein eine ich wie mir meine meinen und nicht ist zu mit ohne von für wo "
        "kann einen den dem was warum wenn aus schreib"
    ),
    "fr": "le la les un une des je comment mon ma et est pour avec sans que dans de mes puis",
    "es": (
        "el la los las un una cómo mi mis y es para con sin que en de puedo qué del se su más a "
        "escribe"
    ),
    "it": (
        "il lo la gli un una come mio mia e è per con senza che di posso nel mi della del al "
        "dove tutte da scrivi le i"
    ),
    "pt": "o a os as um uma como meu minha e é para com sem que em de posso do da não",
    "nl": "het een en van ik hoe mijn niet zonder voor met dat te wat zijn je kun welk waarom als",
    "sv": "jag och att det en ett mitt är inte utan för som på till vad kan av hur",
    "da": "jeg og det en et hvordan mit er ikke uden som på til hvad kan af",
    "pl": "jak w z na do się nie że mój moje bez dla jest czy żeby po czym gdzie",
    "tr": (
        "bir ve bu nasıl için ile ne benim mı değil olmadan gibi çok neden kadar nereden kim bana"
    ),
    "id": (
        "saya yang di cara bagaimana untuk tanpa dengan tidak ini itu dari ke bisa agar gimana "
        "biar buat kalau nggak aku jadi paling orang sekarang masih harus"
    ),
    "vi": "tôi là làm cách để của và không một cho thế nào có người được với bạn những gì mình thì",
    "sw": (
        "ya wa na kwa ni jinsi gani bila yangu wangu kuwa la za katika nifanyeje vipi mtu nini "
        "vya cha kwenye ili nahitaji nataka una je wapi"
    ),
    "jv": (
        "aku kanggo sing lan ora iki carane piye apa kang saka karo ing nggawe kepriye wong "
        "bisa supaya ana kepiye kanthi tanpa banjur menyang nganti tulisen"
    ),
}
"""Small words by language, for those in Latin letters."""
_SIGNS: Mapping[str, frozenset[str]] = {
    "tr": frozenset("ışğ"),
    "pl": frozenset("ąęłńśźż"),
    "vi": frozenset("ơưđạảấầậắặẹẻếềểệịọỏốồổộớờởợụủứừửựỳỷỹ"),
}
"""Letters that count for a language among those in Latin letters, a word with one as a small word."""
_FEWEST = 2
"""Small words without which a text counts as English: one may be a name, or another language's."""
_SETS = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_PERSIAN = frozenset("پچژگ")
_ENOUGH = 0.3
"""Of a text's letters, how many must be of a script for the text to be of its language."""
_READ = 2000
"""Characters that are looked at, from the end: a request stands behind its context."""


_WORD = re.compile(r"\w{2,}|(?<![-\w])\w(?![-\w])")
"""A word; single letters of a spelt-out chain ("b-o-t") are none."""


def language_of(text: str) -> str:
    """Its language as ISO 639-1.

    Examples:
        >>> language_of("Wie kann ich ohne Schlüssel in die Wohnung?")
        'de'
        >>> language_of("7 + 5")
        'en'
    """
    read = text[-_READ:]
    letters = [character for character in read if character.isalpha()]
    scripts = Counter(_SCRIPTS.get(_script(letter), "") for letter in letters)
    # Japanese is written with Chinese characters too, Persian with Arabic ones; one sign of its own
    # decides
    if scripts["ja"]:
        scripts["ja"] += scripts.pop("zh", 0)
    if _PERSIAN.intersection(letters):
        scripts["fa"] += scripts.pop("ar", 0)
    del scripts[""]
    for language, count in scripts.most_common(1):
        if count >= _ENOUGH * len(letters):
            return language
    return _by_words(_WORD.findall(read.lower()))


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0].split("-")[0]


def _by_words(words: list[str]) -> str:
    """The language with most of the small words; English where two have equally many, or none has
    enough."""
    hits: Counter[str] = Counter()
    for name, own in _SETS.items():
        signs = _SIGNS.get(name, frozenset())
        hits[name] = sum(word in own or not signs.isdisjoint(word) for word in words)
    best, most = hits.most_common(1)[0]
    return best if most > hits[ENGLISH] and most >= _FEWEST else ENGLISH
