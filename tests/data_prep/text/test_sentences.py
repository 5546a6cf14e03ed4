"""Sentence splitting: only white space is lost, whatever the paragraph."""

import random

import pytest

from data_prep.text import sentences
from data_prep.text.sentences import split_sentences


def without_space(text: str) -> str:
    return "".join(text.split())


def test_splits() -> None:
    text = 'Dr. Smith paid 3.5 dollars. "Why?" he asked. It was late, e.g. at night.'
    sentences = list(split_sentences(text, "en"))
    assert sentences[0] == "Dr. Smith paid 3.5 dollars."
    assert sentences[-1] == "It was late, e.g. at night."


@pytest.mark.parametrize(
    "sentences",
    [
        ["“It is late.", "He went.” he said."],
        ["He said “Go.", "Now.”", "Nobody came.", "“Why?", "I am Dr. Smith,” said he."],
        ['"One.', 'Two."', "Three."],
        ["I met him ‘Now.", "Then.’", "And I don’t.", "It’s Tom’s."],
        ['"Why?" he asked.', '"No."', "She left."],
        ["“What? no!” she cried."],
        ["It is so (see there. )"],
        ["Well ...", "So."],
        ['It is "the purest form.".', "So he said."],
        ["“Ah! my dear,” said he.", "He wrote Who Goes There? and others, e.g. this one.", "So."],
        ["is it late?", "it is early.", "he went."],
        ["Bufo spp. toads hunt."],
        ["„Ja.", "Nein!“", "Er ging."],
    ],
)
def test_speech(sentences: list[str]) -> None:
    """Quoted speech of several sentences is split, but not before a lower-case letter or punctuation alone."""
    assert list(split_sentences(" ".join(sentences), "en")) == sentences


COUNTED_BY_HAND = [
    ("en", ["(1) A big thing came.", "The dog ran.", "The cat sat."]),
    ("en", ["1. The Congress may.", "2. The motion must."]),
    ("en", ["(a) Dogs bark.", "(b) Cats meow."]),
    ("en", ["See Eq. 4, Vol. 9, Ch. 10.", "Article 68, Par. 2 of the law."]),
    ("en", ["It returns a list.", '"dir()" sorts it.', "It went on - was it? - for a while (see above! (so) there)."]),
    ("en", ["A. Smith came.", "It was 5 p.m.", "He left."]),
    ("de", ["Das ist z. B. so, d. h. anders.", "Dr. Müller kam am 3. Mai.", "Siehe Abb. 3.", "Er ging."]),
    ("fr", ["M. Dupont est arrivé.", "Il vécut av. J.-C. longtemps.", "Il a dit « Bonjour. »", "Puis il est parti."]),
    ("es", ["El Sr. García llegó.", "¿Qué pasa?", "¡Nada!"]),
    ("bg", ["Годините се бележат със „сл.Хр.“ (след Христа), т.е. 365 дни."]),
    ("ru", ["Он родился в 1900 г. в Москве.", "Потом уехал."]),
    ("pl", ["Prof. Kowalski przyszedł.", "Było to ok. 5 km."]),
    ("hi", ["यह एक वाक्य है।", "यह दूसरा है।"]),
    ("bo", ["བོད་ཀྱི་སྐད་ཡིག།", "འདི་ནི་ཚིག་གྲུབ་གཉིས་པ་ཡིན།"]),
    ("ar", ["هل قرأت هذا؟", "نعم.", "قرأته."]),
    ("en", ["Pt. is a 54 y.o. male with a cough.", "BP 130/80, HR 72.", "Temp. 37.2 C and sat. 94 % in the morning."]),
    ("en", ["1. Continue metoprolol 25 mg p.o. b.i.d. and aspirin.", "2. See Dr. Lee in 2 weeks."]),
    ("de", ["Z. n. Appendektomie 1998.", "Keine Allergien bekannt.", "Vorstellung am 12. März bei Dr. Weber."]),
    ("fr", ["Le pt. a 54 ans, env. 80 kg.", "TA 13/8.", "Revu par le Dr. Martin le 3 mai."]),
    ("es", ["Quizás vaya al espacio.", "-- Stephen Hawking. (1942-2018).", "Físico teórico."]),
    ("de", ["2013 kam er in die Jury des 66. Festivals.", "Er war 66.", "Sie ging."]),
    ("de", ["Die Endung .tar.Z wird ebenfalls erkannt.", "Andere nicht."]),
    ("da", ["Han kom den 66. Gang.", "Hun gik."]),
    ("gl", ["Construído a finais do s. XVIII e reformado no s. XX polo rei.", "É de pedra."]),
    ("pl", ["Aleksandr Borodin (ur. 31 października 1833, zm. 27 lutego 1887) był chemikiem.", "Komponował."]),
    ("gl", ["Alí están os restos de Dª. María e do seu fillo.", "Morreu axiña."]),
    ("fr", ["2.2.9. Journaux des paquets installés"]),  # numbers of headings and tables
    ("tr", ["Tablo 3.1. Uyumlu işletim sistemi"]),
    ("zh", ["表 12.12. 高级命令列表"]),
    ("ar", ["شكل 6.3. تحديث النظام"]),
    ("fi", ["Lauseen pitää olla For...Next -silmukan sisällä.", "Muuten se ei toimi."]),
    ("en", ["The file is /usr/share/locale/en_US.UTF-8/Compose here.", "Read it."]),
    ("ru", ["Учиться верности, нежности..., благородству и терпению.", "Это трудно."]),
    ("tr", ["Sunucu kaliteyi sağlamaya çalışır.", "http://proxy.example:3128 adresini yazın.", "ali@ev.example okur."]),
    ("es", ["Existen dos clases de almejas.", "las de mar y las de río."]),
]


@pytest.mark.parametrize(("language", "expected"), COUNTED_BY_HAND)
def test_list_marks_and_abbreviations(language: str, expected: list[str]) -> None:
    assert list(split_sentences(" ".join(expected), language)) == expected


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("ja", ["「そうですか。」と彼は言った。", "次の日は雨だった。"]),
        ("ja", ["彼は「行こう。早く。」と言った。"]),
        ("zh", ["他说：“你好。”", "然后走了。", "天黑了。"]),
        ("zh", ["下面是正则表达式。", "aptitude 用它来匹配。"]),
        ("ja", ["4 バイトがデフォルト。", "1, 2 バイトも可能。"]),
        ("ja", ["どちらかが (a) 開けるか (b) 盗聴できれば可能です。", "暗号化をお勧めします。"]),
        ("ja", ["引き数が ! であれば否定する。", "(しかし、例外がある。)", "次は別の話である。"]),
    ],
)
def test_text_without_spaces(language: str, expected: list[str]) -> None:
    assert list(split_sentences("".join(expected), language)) == expected


def test_nothing_is_lost() -> None:
    rng = random.Random(0)
    letters = "abc ABC.!?\"'“”‘’()[]…。！ \u00a0\u2028éß中文\U0001f600\u0301-—123\t"
    for _ in range(3000):
        text = "".join(rng.choices(letters, k=rng.randint(0, 120)))
        for language in ("en", "de", "zh"):
            assert without_space("".join(split_sentences(text, language))) == without_space(text)


@pytest.mark.parametrize("unit", ["a b ", "word. ", '"a. b ', '"A. B ', "“a. b. ", '. "', "x", "Mr. ", "(", "é"])
def test_huge_paragraphs_take_linear_work(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded pieces are passed to sentencex, and no text more than twice."""
    sizes: list[int] = []

    def segment(piece: str, language: str) -> list[str]:
        sizes.append(len(piece))
        return segment_unchanged(piece, language)

    segment_unchanged = sentences._segment
    monkeypatch.setattr(sentences, "_segment", segment)
    text = unit * (500_000 // len(unit))
    found = list(split_sentences(text, "en"))
    assert max(sizes) <= 100_000
    assert sum(sizes) <= 2 * len(text) + len(found)
    assert sum(len(without_space(sentence)) for sentence in found) == len(without_space(text))
