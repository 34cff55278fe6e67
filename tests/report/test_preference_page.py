"""The page on which people compare pictures: what it holds, what it hides, its order, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import preference
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2ikit.cli import main
from t2ikit.metrics.base import Samples
from t2ikit.metrics.geneval.files import write_folder
from t2ikit.metrics.questions.dpg_grids import write_grids
from t2ikit.prompts import Prompt, PromptFile
from t2ikit.report.preference import building
from t2ikit.report.preference.building import build, script_of_page
from t2ikit.report.preference.folders import pair, text_of
from t2ikit.report.preference.key import read_key
from t2ikit.report.preference.orders import Comparison, comparisons_of, repeats_of

NODE = shutil.which("node")


def data_of(text: str) -> dict[str, object]:
    """What the page knows, as a browser reads it."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, object] = json.loads(found[1])
    return data


def pictures_of(text: str) -> dict[str, bytes]:
    """Name -> bytes of every picture in the page."""
    found = re.findall(r'<script type="text/plain" id="(\w+)">data:image/png;base64,([^<]*)</script>', text)
    return {name: base64.b64decode(content, validate=True) for name, content in found}


def pixels(content: bytes | Path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content) if isinstance(content, bytes) else content).convert("RGB"))


def test_a_page_holds_every_picture_once_and_names_no_model(tmp_path: Path) -> None:
    built = preference.page(tmp_path, "alpha", "beta")
    text = built.page.read_text()
    for secret in ("alpha", "beta", "ckpt", "salt", str(tmp_path), "Software", "00000.png"):
        assert secret not in text
    shown = pictures_of(text)
    key = read_key(built.key_path)
    assert key == built.key and len(key.prompts) == len(preference.PROMPTS)
    assert list(shown) == sorted(name for entry in key.prompts for name in entry.pictures.values())
    for entry in key.prompts:
        for model, name in entry.pictures.items():
            with Image.open(io.BytesIO(shown[name])) as image:
                assert image.info == {}  # no metadata
            assert (pixels(shown[name]) == pixels(tmp_path / model / f"{entry.prompt}.png")).all()
    files = {path.suffix for path in tmp_path.iterdir() if path.is_file()}
    assert built.pictures is None and files == {".html", ".json"}


def test_prompts_arrive_as_they_are(tmp_path: Path) -> None:
    text = preference.page(tmp_path).page.read_text()
    assert [entry["text"] for entry in data_of(text)["prompts"]] == preference.PROMPTS  # type: ignore[index, attr-defined]
    assert text.count("</script>") == text.count("<script") and "<b>" not in text and "<!--" not in text
    assert text.isascii() or "שלום" not in text  # no letter that turns the source around


def test_the_page_may_ask_nothing_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    text = preference.page(tmp_path).page.read_text()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])  # type: ignore[index]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:" and "unsafe" not in policy
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    style = text.partition("<style>")[2].partition("</style>")[0]
    for rule, part in (("script-src", script), ("style-src", style)):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
    assert script == script_of_page()
    body = re.sub(r"base64,[^<]*", "", text.partition("<body>")[2])
    assert not re.search(r"https?:|//[a-z]|\bfetch\(|XMLHttp|@import|url\(| style=| on[a-z]+=", body)


def test_the_same_arguments_give_the_same_bytes_and_the_salt_other_names(tmp_path: Path) -> None:
    models = preference.folders(tmp_path, "alpha", "beta")
    pages = [build(models, tmp_path / name / "page.html", salt) for name, salt in (("a", "x"), ("b", "x"), ("c", "y"))]
    first, second, third = (built.page.read_bytes() for built in pages)
    assert first == second and first != third
    assert not {*pictures_of(first.decode())} & {*pictures_of(third.decode())}
    assert pages[0].key.page == pages[1].key.page != pages[2].key.page
    assert build(models, tmp_path / "d" / "page.html", "x", seed=1).key.page != pages[0].key.page


def test_sizes_do_not_tell_the_models_apart(tmp_path: Path) -> None:
    models = preference.folders(tmp_path, "alpha", "beta")
    preference.picture(tmp_path / "beta" / "00001.png", 7, preference.PROMPTS[1], (32, 32))
    built = build(models, tmp_path / "page.html", "salt")
    shown = pictures_of(built.page.read_text())
    sizes = [{pixels(shown[name]).shape[:2] for name in entry.pictures.values()} for entry in built.key.prompts]
    assert sizes == [{(16, 16)}, {(32, 32)}, *[{(16, 16)}] * 4] and built.enlarged == {"alpha": 1, "beta": 0}
    preference.picture(tmp_path / "beta" / "00002.png", 7, preference.PROMPTS[2], (32, 16))
    with pytest.raises(ValueError, match=r"picture 00002 has 32 x 16 pixels in .*beta.* 16 x 16 in .*alpha.*aspect"):
        build(models, tmp_path / "other.html", "salt")


def test_many_pictures_lie_in_a_folder_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "MOST_INLINE", 100)
    built = preference.page(tmp_path)
    assert built.pictures == tmp_path / "page.pictures"
    names = [name for entry in built.key.prompts for name in entry.pictures.values()]
    assert sorted(path.name for path in built.pictures.iterdir()) == sorted(f"{name}.png" for name in names)
    times = {path.stem: path.stat().st_mtime_ns for path in built.pictures.iterdir()}
    assert sorted(times, key=lambda name: (times[name], name)) == sorted(names)  # model after model would tell
    text = built.page.read_text()
    assert pictures_of(text) == {} and data_of(text)["folder"] == "page.pictures"
    assert "img-src data: &#39;self&#39; file:" in text
    assert not list(tmp_path.glob(".*"))


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = preference.folders(tmp_path, "alpha", "beta")

    def fails(*_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(building, "page_of", fails)
    for most in (10**8, 100):
        monkeypatch.setattr(building, "MOST_INLINE", most)
        with pytest.raises(OSError, match="no space"):
            build(models, tmp_path / "page.html", "salt")
        assert {path.name for path in tmp_path.iterdir()} == {"alpha", "beta"}


# ------------------------------------------------------------------ folders


def test_what_a_model_lacks_is_left_out(tmp_path: Path) -> None:
    models = preference.folders(tmp_path, "alpha", "beta", "gamma")
    (tmp_path / "beta" / "00001.png").unlink()
    (tmp_path / "gamma" / "00001.png").unlink()
    (tmp_path / "alpha" / "00004.png").unlink()
    preference.picture(tmp_path / "alpha" / "grid.png", 0, None)
    pairing = pair(models)
    assert pairing.left_out == {"00001": ["beta", "gamma"], "00004": ["alpha"]}
    assert list(pairing.prompts) == ["00000", "00002", "00003", "00005"]


def test_unlike_prompts_are_refused_with_both(tmp_path: Path) -> None:
    models = preference.folders(tmp_path, "alpha", "beta")
    preference.picture(tmp_path / "beta" / "00004.png", 0, "a green square")
    with pytest.raises(ValueError, match=r"00004 of alpha and of beta.*'a blue square' and 'a green square'"):
        pair(models)


def test_pictures_of_other_programs_take_their_prompts_from_a_file(tmp_path: Path) -> None:
    models = preference.folders(tmp_path, "alpha", prompts=["a cat", "a dog"])
    models["other"] = tmp_path / "other"
    models["other"].mkdir()
    for index in range(2):
        Image.new("RGB", (16, 16)).save(tmp_path / "other" / f"{index}.jpg")
    with pytest.raises(ValueError, match=r"0.jpg does not hold its prompt: give --prompts"):
        pair(models)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    assert pair(models, tmp_path / "prompts.txt").prompts == {"00000": "a cat", "00001": "a dog"}
    (tmp_path / "prompts.txt").write_text("a cat\na bird\n")
    with pytest.raises(ValueError, match=r"has the prompt 'a dog', --prompts says 'a bird'"):
        pair(models, tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match=r"--prompts has 1 lines"):
        pair(models, tmp_path / "prompts.txt")


def test_an_empty_line_shifts_no_prompt(tmp_path: Path) -> None:
    for model in ("alpha", "beta"):
        (tmp_path / model).mkdir()
        for index in range(2):
            Image.new("RGB", (16, 16)).save(tmp_path / model / f"{index}.jpg")
    models = {model: tmp_path / model for model in ("alpha", "beta")}
    for text, line in (("a cat\n\na dog\n", 1), ("\na cat\na dog\n", 0), ("a cat\n \t\n\na dog", 1)):
        (tmp_path / "prompts.txt").write_text(text)
        with pytest.raises(ValueError, match=rf"prompts.txt: line {line} \(from 0\) is empty"):
            pair(models, tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n\n\n")
    assert pair(models, tmp_path / "prompts.txt").prompts == {"00000": "a cat", "00001": "a dog"}


def test_large_pictures_hold_their_prompt_too(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("prompt", "a cat")
    Image.new("1", (16000, 12000)).save(tmp_path / "0.png", pnginfo=text)  # more than Pillow's own limit
    assert text_of(tmp_path / "0.png") == {"prompt": "a cat"}
    Image.new("RGB", (16, 16)).save(tmp_path / "1.png", format="JPEG")
    assert text_of(tmp_path / "1.png") == {}
    (tmp_path / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"2.png is no whole image"):
        text_of(tmp_path / "2.png")


def test_kept_images_of_every_layout_pair(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    prompts = [Prompt("a cat", {"item_id": "one"}), Prompt("a dog", {"item_id": "two"})]
    for model in ("alpha", "beta"):
        (tmp_path / model).mkdir()
        for folder in ("n01440764", "n01443537"):
            preference.picture(tmp_path / "classes" / model / folder / "00000.png", 0, folder)
        facts = [{"prompt": "a cat", "tag": "single_object", "include": [{"class": "cat", "count": 1}]}] * 2
        write_folder(tmp_path / "geneval" / model, Samples(images, metadata=facts), {"seed": "0"}, grid=True)
        PromptFile("-").write_images(tmp_path / model, images, prompts, {"seed": "0"})
        samples = Samples(images, [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts])
        write_grids(samples, tmp_path / "dpg" / model)
    kinds = ("classes", "geneval", "dpg", ".")
    found = {kind: pair({model: tmp_path / kind / model for model in ("alpha", "beta")}).prompts for kind in kinds}
    assert found["classes"] == {"n01440764/00000": "n01440764", "n01443537/00000": "n01443537"}
    assert found["geneval"] == {"00000/samples/00000": "a cat", "00000/samples/00001": "a cat"}
    assert found["."] == {"00000": "a cat", "00001": "a dog"}
    assert found["dpg"] == {"one": "a cat", "two": "a dog"}


def test_mistakes_are_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preference.folders(tmp_path, "alpha", "beta")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "00000.png").write_bytes((tmp_path / "alpha" / "00000.png").read_bytes()[:-40])
    (tmp_path / "none").mkdir()
    alpha, out = f"A={tmp_path}/alpha", f"--out={tmp_path}/page.html"
    for words, message in (
        ([alpha, out], "two models"),
        ([alpha, f"A={tmp_path}/beta", out], "one name"),
        ([alpha, f"B={tmp_path}/alpha", out], "is the folder of A too"),
        ([alpha, f"B={tmp_path}/none", out], "no picture in"),
        ([alpha, f"B={tmp_path}/missing", out], "no folder"),
        ([alpha, f"B={tmp_path}/cut", out], "cut/00000.png is no whole image"),
        ([alpha, f"B={tmp_path}/beta", f"--out={tmp_path}/page"], "ends with .html"),
        (
            [alpha, f"B={tmp_path}/beta", out, "--questions", "beauty"],
            "--questions beauty: give one or more",
        ),
        ([alpha, f"B={tmp_path}/beta", out, "--repeat", "0.6"], "--repeat 0.6"),
        ([alpha, f"b\udcff={tmp_path}/beta", out], "'b\\udcff'=DIR: the name of the model is no UTF-8 text"),
        ([alpha, f"B={tmp_path}/missing", f"--out={tmp_path}"], "is a folder: name a file, such as"),
        ([alpha, f"B={tmp_path}/missing", "--out=."], "--out . is a folder"),
        ([alpha, f"B={tmp_path}/missing", f"--out={tmp_path}/{'n' * 240}.html"], ".html: File name too long"),
    ):
        assert main(["prefer", "build", *words]) == 2, words
        said = capsys.readouterr().err
        assert message in said and ".partial" not in said
        assert {path.name for path in tmp_path.iterdir()} == {"alpha", "beta", "cut", "none"}
    assert main(["prefer", "build", alpha, f"B={tmp_path}/beta", out]) == 0
    key = (tmp_path / "page.key.json").read_bytes()
    assert main(["prefer", "build", alpha, f"B={tmp_path}/beta", out]) == 2  # raters may have the page
    assert "page.html is there" in capsys.readouterr().err and (tmp_path / "page.key.json").read_bytes() == key


def test_the_command_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preference.folders(tmp_path, "alpha", "beta", "gamma")
    (tmp_path / "beta" / "00001.png").unlink()
    words = [f"{name}={tmp_path}/{name}" for name in ("alpha", "beta", "gamma")]
    assert main(["prefer", "build", *words, "--out", f"{tmp_path}/page.html", "--repeat", "0.1"]) == 0
    said = capsys.readouterr().out
    # 5 prompts, 3 pairs, 2 of 15 again, 2 questions
    assert "5 prompts, 3 models, 34 comparisons for each rater" in said and "00001: not in beta" in said
    salts = {read_key(tmp_path / "page.key.json").salt}
    assert main(["prefer", "build", *words, "--out", f"{tmp_path}/again.html"]) == 0
    assert len(salts | {read_key(tmp_path / "again.key.json").salt}) == 2


# ------------------------------------------------------------------ orders


def test_every_pair_once_and_repeats_with_their_sides_swapped() -> None:
    prompts = [(f"{index:05d}", [f"{index}a", f"{index}b", f"{index}c"]) for index in range(20)]
    order = comparisons_of(0, "Zoë", "quality", prompts, 6)
    assert len(order) == 66
    first: dict[frozenset[str], int] = {}
    distances = []
    for position, shown in enumerate(order):
        pair = frozenset((shown.left, shown.right))
        if pair in first:
            assert order[first[pair]] == shown.swapped()
            distances.append(position - first[pair])
        first.setdefault(pair, position)
    assert len(first) == 60 and len(distances) == 6 and min(distances) >= 30
    left = Counter(shown.left < shown.right for shown in order)
    assert 20 < left[True] < 46  # fair sides


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_a_short_order_holds_all_its_repeats(count: int, share: float) -> None:
    prompts = [(str(index), [f"{index}a", f"{index}b"]) for index in range(count)]
    repeats = repeats_of(share, count)
    assert len(comparisons_of(0, "a", "quality", prompts, repeats)) == count + repeats


def test_orders_differ_by_rater_question_and_seed_alone() -> None:
    prompts = [(str(index), [f"{index}a", f"{index}b"]) for index in range(30)]

    def order(seed: int = 0, rater: str = "a", question: str = "quality") -> list[Comparison]:
        return comparisons_of(seed, rater, question, prompts, 0)

    assert order() == order()
    others = [order(seed=1), order(rater="b"), order(question="consistency")]
    names = [[shown.prompt for shown in other] for other in others]
    assert all(other != [shown.prompt for shown in order()] for other in names)
    assert repeats_of(0.1, 30) == 3 and repeats_of(0.05, 21) == 2 and repeats_of(0.0, 5) == 0


@pytest.mark.skipif(NODE is None, reason="needs node, to run the script of the page")
@pytest.mark.parametrize(
    ("models", "seed"), [(("alpha", "beta"), 7), (("alpha", "beta", "gamma"), -7), (("alpha", "beta"), 2**70 + 1)]
)
def test_the_page_asks_in_the_same_order(tmp_path: Path, models: tuple[str, ...], seed: int) -> None:
    built = preference.page(tmp_path, *models, repeat=0.3, seed=seed)
    data = data_of(built.page.read_text())
    order = script_of_page().partition("// The page of a comparison")[0]
    raters = ["Zoë Müller", "שלום", "a" * 200, "\U0001f600"]
    program = f"{order};\nconst [page, raters] = JSON.parse(require('fs').readFileSync(0, 'utf8'));\n"
    program += "console.log(JSON.stringify(raters.map((rater) => comparisonsOf(page, rater))));"
    assert NODE is not None
    run = subprocess.run([NODE, "-e", program], input=json.dumps([data, raters]), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for rater, found in zip(raters, json.loads(run.stdout), strict=True):
        assert [Comparison(**entry) for entry in found] == preference.asked(built.key, rater)


# ------------------------------------------------------------------ keys and clicks

BROWSER = """
const listeners = {}, made = {};
const element = (id, tagName = "BUTTON") => made[id] ??= {
  id, tagName, dataset: {}, on: {}, classList: { add() {}, remove() {}, toggle() {} },
  addEventListener(name, act) { this.on[name] = act; }, focus() {}, append() {}, removeAttribute() {},
  decode: async () => {}, naturalWidth: 16, textContent: "",
};
const answers = ["left", "same", "right"].map((choice) => Object.assign(element(choice), { dataset: { choice } }));
globalThis.document = { getElementById: element, querySelectorAll: () => answers, createElement: () => ({}) };
globalThis.addEventListener = (name, act) => (listeners[name] = act);
const kept = { "t2ikit preference P ": "Anna" };
globalThis.localStorage = { getItem: (name) => kept[name] ?? null, setItem: (name, text) => (kept[name] = text) };
globalThis.sessionStorage = globalThis.localStorage;
const settled = () => new Promise((done) => setTimeout(done, 0));
async function click(target, detail) {
  target.on.click?.({ detail });
  await settled();
}
// As a browser: Enter clicks the button that has the focus, unless a listener prevents that.
async function press(target, key, repeat) {
  let prevented = false;
  listeners.keydown({ key, repeat, target, preventDefault: () => (prevented = true) });
  if (key === "Enter" && !prevented) await click(target, 0);
  return prevented;
}
const answered = () => JSON.parse(kept["t2ikit preference P Anna"]).length;
"""

ACTIONS = """
(async () => {
  const counts = [], left = answers[0];
  await click(element("begin"), 1);
  for (const detail of [1, 2, 3]) await click(left, detail);
  counts.push(answered());
  for (const repeat of [false, true, true, true]) await press(left, "Enter", repeat);
  counts.push(answered());
  const space = [await press(left, " ", true), await press(element("name", "INPUT"), " ", true)];
  await click(left, 1);
  counts.push(answered());
  console.log(JSON.stringify([counts, space]));
})();
"""


@pytest.mark.skipif(NODE is None, reason="needs node, to run the script of the page")
def test_a_held_key_and_a_double_click_answer_once(tmp_path: Path) -> None:
    data = data_of(preference.page(tmp_path).page.read_text()) | {"page": "P"}
    pictures = f"element('data').textContent = {json.dumps(json.dumps(data))};"
    program = "\n".join([BROWSER, pictures, script_of_page(), ACTIONS])
    assert NODE is not None
    run = subprocess.run([NODE, "-"], input=program, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    # One more answer each; a held space is kept from a button alone, as names hold spaces.
    assert json.loads(run.stdout) == [[1, 2, 3], [True, False]]
