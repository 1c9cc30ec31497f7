"""Tokens equal NLTK's on synthetic, arbitrary and real captions; vocabularies and word vectors are read strictly.

`python tests/test_text.py` writes golden/tokens.jsonl anew: do so only when the made captions change, or when the
package follows another NLTK release.
"""

import functools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_jax.errors import CheckpointError, DataError
from xmodal_jax.text.tokens import tokenize
from xmodal_jax.text.vectors import load_word_vectors
from xmodal_jax.text.vocabulary import END, SPECIAL, START, UNKNOWN, Vocabulary
from xmodal_jax.training import setup

GOLDEN = Path(__file__).resolve().parent / "golden" / "tokens.jsonl"

SUBJECTS = """
a dog|two girls|the man's friend|an old fisherman|mr. o'neill|dr. smith|three kids (all boys)|the U.S. team
a 6'2" player|rock 'n' roll fans|the '90s band|somebody|a café's owner|São Tomé’s children|a black-and-white cat
people from St. John's|30% of the crowd|a boy, a girl, and a dog|someone named "Red"|an e-mail writer|@friends
the James' twins|a zoë ångström look-alike|женщина|一只狗|a 👩‍🦰 woman|the dogs'|a so-called "expert"|5,000 runners
#1 fan|Ms. Lee
"""
VERBS = """
runs|isn't running|can't jump|cannot see|won't stop|'s gonna leap|is gonna climb|wanna dance|has gotta go
they're holding|they've dropped|I'd've caught|it'll carry|lemme hold|gimme that|didn't--couldn't--throw
d'ye see|wants more'n that|'tis eating|'twas eating|said: "look at|asks, 'why|shouts “hey”|whispers ‘hush’
plays rock'n'roll on|ain't afraid of|y'all watch|could've fallen off|shouldn't've left|let's play on|who'd ridden
reads «le monde»|sits ... waits
"""
OBJECTS = """
a red ball|the $5.00 toy|1,000.5 balloons|a bike at 3:30|the sea; it's cold|a [blurry] sign|a {strange} hat
the sign "NO DOGS"|a sign that says 'stop!'|50% off|A&W &amp; B&B|the end of the pier -- again|a wall – grey
and/or a frisbee|n° 7½|user@example.com|www.example.com/a?b=c|5 o'clock tea|the boys' bikes|it's owner
'em|`code`|``quoted''|''odd''|tab\tseparated|two\rlines|nbsp\u00a0here|a\u3000wide space|its \x00 byte
e\u0301clair|½ cup|²-th time|a*b**c|C++ #hash|a_b|:) ;-)|(see p. 3)|?!|etc., etc.|ﬁne|ſtreet|İstanbul
10:00 a.m. train|a t-shirt|stairs—steep|a 2–3 m drop|a\x1cseparator|zero\u200bwidth|<b>bold</b> text
"""
ENDS = ["", "", ".", ".", " .", "!", "?", "...", "…", ".)", '."', ".'", ".''", ".”", " . ", ".\n", ".’ )", ". \t"]
ENDS += ["..", ";", ",", ":", "'", '"']
WORDLIKE = "|''|``|--|'s|'S|'m|'d|'t|n't|'ll|'re|'ve|cannot|gonna|wanna|gimme|lemme|gotta|more'n|d'ye|'tis|'twas"
PIECES = [*"abdemnstvx01 ,.:;'\"`-()[]{}<>*?!@#$%&_+/\\|~^\t\n\0", *WORDLIKE.split("|"), ". ", ".'", "' "]
PIECES += [*"«»„“”‘’–—…éßſıİªⅷ½²٣中\u0301\u200c\u200d\u00a0\u0085\u2028\x1c\x1f"]


def make_captions(seed: int = 0, number: int = 2000) -> list[str]:
    """Captions of every awkward kind: most like sentences, some plain heaps of awkward pieces."""
    rng = random.Random(seed)
    subjects, verbs, objects = (part.strip("\n").replace("\n", "|").split("|") for part in (SUBJECTS, VERBS, OBJECTS))
    captions = []
    for index in range(number):
        if index % 5 == 4:
            captions.append("".join(rng.choices(PIECES, k=rng.randint(1, 24))))
            continue
        caption = f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(objects)}"
        if rng.random() < 0.3:
            caption += f"{rng.choice([',', ' --', ';', ' and', ' –', ':'])} {rng.choice(objects)}"
        if rng.random() < 0.2:
            left, right = rng.choice(['""', "''", "()", "[]", "“”", "‘’", "«»", "<>", ("``", "''")])
            caption = f"{left}{caption}{right}"
        caption = rng.choice([str, str.capitalize, str.upper])(caption)
        captions.append(caption + rng.choice(ENDS))
    return captions


@functools.cache
def nltk_tokenizer():
    from nltk import NLTKWordTokenizer

    return NLTKWordTokenizer()


def oracle(text: str) -> list[str]:
    return nltk_tokenizer().tokenize(text.lower())


def read_golden() -> list[tuple[str, list[str]]]:
    rows = [json.loads(line) for line in GOLDEN.read_text(encoding="ascii").splitlines()]
    return [(text, tokens.split(" ") if tokens else []) for text, tokens in rows]


def test_golden_captions():
    rows = read_golden()
    assert len(rows) == 2000
    wrong = [(text, tokens, tokenize(text)) for text, tokens in rows if tokenize(text) != tokens]
    assert not wrong, wrong[:3]


def test_golden_captions_are_nltks():
    rows = read_golden()
    assert [text for text, _ in rows] == make_captions()
    wrong = [(text, tokens, oracle(text)) for text, tokens in rows if oracle(text) != tokens]
    assert not wrong, wrong[:3]


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_arbitrary_text_equals_nltk(text):
    assert tokenize(text) == oracle(text)


def test_pieces_equal_nltk():
    rng = random.Random(1)
    for _ in range(3000):
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 12)))
        assert tokenize(text) == oracle(text), repr(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        (" \t\n", []),
        ("A man's dog can't run.", ["a", "man", "'s", "dog", "ca", "n't", "run", "."]),
        ('"Go," he said ("now").', ["``", "go", ",", "''", "he", "said", "(", "``", "now", "''", ")", "."]),
        ("mr. x sees 1,000.5 kg at 3:30", ["mr.", "x", "sees", "1,000.5", "kg", "at", "3:30"]),
        ("gonna'tis'twas", ["gon", "na", "'t", "is", "'t", "was"]),
        ("rock 'n' roll, 'em o'clock", ["rock", "'n", "'", "roll", ",", "'", "em", "o'clock"]),
    ],
)
def test_tokens(text, tokens):
    assert tokenize(text) == tokens


@pytest.mark.parametrize("letter", "a𝐀éʰ中\u0301ाः\u20dd5٣ⅷ_‿\u200c\u200dⓐ🄰🅐🅰")
def test_letters_are_unicodes(letter):
    assert tokenize(f"{letter}'em") == [f"{letter}'em"] == oracle(f"{letter}'em")
    assert tokenize(f"{letter}'s'em 'll{letter}") == oracle(f"{letter}'s'em 'll{letter}")


@pytest.mark.data
@pytest.mark.slow
def test_flickr8k_equals_nltk(flickr8k):
    captions = [
        caption
        for split in ("train", "dev", "test")
        for caption in (flickr8k / f"{split}_caps.txt").read_text(encoding="utf-8").splitlines()
    ]
    assert len(captions) == 40_000
    wrong = [caption for caption in captions if tokenize(caption) != oracle(caption)]
    assert not wrong, wrong[:3]


LONG = ["a dog can't ", "'", "' ", '"', '`"', ".", ". ", ") ", " ", "\x1c", ",", "can", "x's", "'re", "'a", "([", "-"]


@pytest.mark.parametrize("piece", LONG)
@pytest.mark.parametrize("shape", ["{}", "a.{}b", "{}.", "a{}."])
def test_long_captions_take_linear_time(piece, shape):
    text = shape.format(piece * (100_000 // len(piece)))
    began = time.process_time()
    tokenize(text)
    assert time.process_time() - began < 5  # well under a second on a quiet core; a quadratic rule takes minutes


def test_vocabulary_counts_and_orders():
    captions = ["the dog's ball.", "The dog runs", "a dog", "the cat", "the end"]
    vocabulary = Vocabulary.build(captions, minimum=1)
    assert vocabulary.words == [*SPECIAL, "the", "dog", "'s", ".", "a", "ball", "cat", "end", "runs"]
    assert Vocabulary.build(captions, minimum=3).words == [*SPECIAL, "the", "dog"]
    assert Vocabulary.build(captions * 2, minimum=7).words == [*SPECIAL, "the"]
    assert Vocabulary.build(["x x x x y y y"]).words == [*SPECIAL, "x"]  # the field's minimum is 4
    assert len(vocabulary) == 13
    assert vocabulary.encode("The dog sleeps <pad>") == [START, 4, 5, *[UNKNOWN] * 4, END]
    assert vocabulary.encode("") == [START, END]
    with pytest.raises(DataError, match=r"No word occurs 4 times in the training captions \(12 words"):
        Vocabulary.build(captions[:4])


@pytest.mark.data
def test_flickr8k_vocabulary(flickr8k):
    captions = (flickr8k / "train_caps.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = Vocabulary.build(captions)
    assert len(vocabulary) == 2933
    assert vocabulary.words[4:7] == ["a", ".", "in"]
    vectors, found = load_word_vectors(flickr8k / "glove50", vocabulary)
    assert vectors.shape == (len(vocabulary), 50) and vectors.dtype == np.float32
    assert found.mean() > 0.9 and not found[:4].any() and not vectors[~found].any()
    words = (flickr8k / "glove50_words.txt").read_text(encoding="utf-8").split("\n")
    row = vocabulary.words.index("dog")
    np.testing.assert_array_equal(vectors[row], np.load(flickr8k / "glove50.npy")[words.index("dog")])


def test_vocabulary_round_trip(tmp_path):
    vocabulary = Vocabulary.build(["café \ud800 中文 dog's"], minimum=1)
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded.words == vocabulary.words and loaded.sha256 == vocabulary.sha256
    assert loaded.encode("CAFÉ") == [START, vocabulary.words.index("café"), END]
    assert [path.name for path in tmp_path.iterdir()] == ["vocabulary.json"]
    assert Vocabulary([*SPECIAL, "a", "b"]).sha256 != Vocabulary([*SPECIAL, "b", "a"]).sha256


def test_flipped_bits_are_found(tmp_path):
    vocabulary = Vocabulary([*SPECIAL, "dog", "café"])
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    raw = path.read_bytes()
    silent = 0
    for bit in range(0, 8 * len(raw), 3):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            silent += Vocabulary.load(path).words != vocabulary.words
        except CheckpointError as error:
            assert str(path) in str(error)
    assert silent == 0
    for length in range(0, len(raw) - 2, 7):
        path.write_bytes(raw[:length])
        with pytest.raises(CheckpointError):
            Vocabulary.load(path)


def content(**changes) -> str:
    good = {"format": "xmodal_jax vocabulary 1", "sha256": Vocabulary([*SPECIAL, "a"]).sha256, "words": [*SPECIAL, "a"]}
    return json.dumps(good | changes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "sound vocabulary"),
        ("null", "should hold the keys"),
        ('{"word2idx": {}, "idx2word": {}, "idx": 4}', "should hold the keys"),
        (content(more=1), "should hold the keys"),
        (content(format="xmodal_jax vocabulary 2"), "its format is"),
        (content(sha256="0" * 64), "SHA-256"),
        (content(words=[*SPECIAL, "b"]), "SHA-256"),
        (content(words="words"), "list of strings"),
        (content(words=[*SPECIAL, 1]), "list of strings"),
        (content(words=["a", *SPECIAL]), "first words"),
        (content(words=[]), "first words"),
        (content(words=[*SPECIAL, "a", "b", "a"]), "'a' stands in it 2 times"),
        (content(words=[*SPECIAL, ""]), "is empty or has a space"),
        (content(words=[*SPECIAL, "a b"]), "is empty or has a space"),
        (content().replace('"words"', '"format": 1, "words"'), "key stands in it twice"),
        (content() + "x", "Extra data"),
        (content(words=["é"]).replace("\\u00e9", "é"), "ascii"),
    ],
)
def test_broken_vocabulary_is_one_sentence(tmp_path, text, reason):
    path = tmp_path / "vocabulary.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=reason) as caught:
        Vocabulary.load(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing_vocabulary(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.json: cannot read the vocabulary \(No such file"):
        Vocabulary.load(tmp_path / "nowhere.json")


WORDS = Vocabulary([*SPECIAL, "dog", "cat", "emu"])


def write_pair(folder: Path, words: str = "cat\ndog\ncat\n<pad>\n", array: np.ndarray | None = None) -> Path:
    np.save(folder / "v.npy", np.arange(8, dtype=np.float16).reshape(4, 2) if array is None else array)
    (folder / "v_words.txt").write_text(words, encoding="utf-8")
    return folder / "v"


def test_word_vectors_reach_the_tables_that_are_meant(tmp_path):
    write_pair(tmp_path)
    table = np.ones((len(WORDS) + 1, 3), np.float32)  # a row more than words, a column more than vectors have
    params = {"text": {"embed": {"embedding": table}}, "other": {"kernel": table}}
    filled = setup.with_word_vectors(params, str(tmp_path / "v"), WORDS, r"(.*/)?embed/embedding")
    assert np.asarray(filled["text"]["embed"]["embedding"])[3:].tolist() == [
        [1] * 3,
        [2, 3, 1],
        [0, 1, 1],
        [1] * 3,
        [1] * 3,
    ]
    assert (filled["other"]["kernel"] == 1).all()
    both = {"embed": {"embedding": table}, "embed_fixed": {"embedding": table}}
    filled = setup.with_word_vectors(both, str(tmp_path / "v"), WORDS, "embed_fixed/embedding")
    assert (filled["embed"]["embedding"] == 1).all()
    assert np.asarray(filled["embed_fixed"]["embedding"])[4].tolist() == [2, 3, 1]


@pytest.mark.parametrize("name", ["v", "v.npy", "v_words.txt"])
def test_word_vectors_from_pair(tmp_path, name):
    write_pair(tmp_path)
    vectors, found = load_word_vectors(tmp_path / name, WORDS)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [*[[0, 0]] * 4, [2, 3], [0, 1], [0, 0]]
    assert found.tolist() == [False] * 4 + [True, True, False]


def test_word_vectors_from_text(tmp_path):
    path = tmp_path / "glove.2d.txt"
    path.write_bytes(b"the 9 9\n\xff\x85 1 2\ncat . 5 6\ncat 0.5 -1e0\ndog 2 3 \r\ncat 7 7\n<pad> 1 1\n")
    vectors, found = load_word_vectors(path, WORDS)
    assert vectors[4:].tolist() == [[2, 3], [0.5, -1], [0, 0]] and not vectors[:4].any()
    assert found.tolist() == [False] * 4 + [True, True, False]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dog 1 2\ncat 1\n", "line 2 has 1 values, the first line 2"),
        ("dog 1 2\ncat 1 x\n", "line 2 holds something that is not a number"),
        ("dog 1 nan\n", "vector of 'dog' is not finite"),
        ("dog\n", "line 1 has 0 values"),
        ("bird 1 2\n", "none of the vocabulary's 3 words"),
        ("", "none of the vocabulary's 3 words"),
    ],
)
def test_broken_text_vectors(tmp_path, text, reason):
    path = tmp_path / "v.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        load_word_vectors(path, WORDS)


def test_broken_pair_vectors(tmp_path):
    def refuses(reason: str):
        with pytest.raises(DataError, match=reason):
            load_word_vectors(tmp_path / "v", WORDS)

    refuses("cannot read word vectors .*No such file")
    write_pair(tmp_path, words="cat\ndog")
    refuses("2 words, but v.npy has 4 vectors")
    write_pair(tmp_path, array=np.zeros((4, 2), int))
    refuses("floating-point array")
    write_pair(tmp_path, array=np.zeros(4))
    refuses("floating-point array")
    write_pair(tmp_path, array=np.array([[{}]] * 4))
    refuses("cannot read the word vectors")
    write_pair(tmp_path, array=np.full((4, 2), np.inf))
    refuses("not finite .2 such words")
    (write_pair(tmp_path).with_suffix(".npy")).write_bytes(b"\x93NUMPY")
    refuses("cannot read the word vectors")
    write_pair(tmp_path)
    (tmp_path / "v_words.txt").write_bytes(b"\xff\n\n\n\n")
    refuses("cannot read the word vectors")


def test_imports_nothing_heavy():
    code = "import sys, xmodal_jax.text.vectors; print(*{'jax', 'flax', 'tensorflow', 'nltk'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


if __name__ == "__main__":
    GOLDEN.write_text(
        "".join(json.dumps([text, " ".join(oracle(text))]) + "\n" for text in make_captions()), encoding="ascii"
    )
