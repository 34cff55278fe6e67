"""``t2ikit experiments``: cards, copies that extend the same files, and shipped experiments by name from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2ikit import cli
from t2ikit.config.cards import card_of, copied
from t2ikit.config.compose import part_of
from t2ikit.config.files import TOP_KEYS, find_experiment, shipped_names


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["experiments", *words])
    return status, *capsys.readouterr()


@pytest.mark.long
def test_every_card_has_a_title_and_needs(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys)
    assert status == 0
    for name in shipped_names():
        card = card_of(find_experiment(name))
        assert len(card.title) > 20 and not card.title.startswith("Not a paper"), name
        assert f"{name}\n  {card.title[:60]}" in out and f"needs: {card.needs}" in out
    assert card_of(find_experiment("quickstart")).needs == "no data (shapes are rendered); runs on a CPU"
    cad_i = card_of(find_experiment("cad_i_cmall"))
    assert "v1 Tables 1, 2" in cad_i.title and cad_i.needs == "prepared data (--data.root data/imagenet256); a GPU"
    assert card_of(find_experiment("synthreal/rgb")).needs == "class folders (--data.train DIR); a GPU"
    _, some, _ = run(capsys, "list", "greedy growing")
    assert "uvit_base_frozen" in some and "cad_i_cmall" not in some
    assert "no card holds the word 'zebra'" in run(capsys, "list", "zebra")[2]


def test_a_card_of_short_forms(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(
        "extends: quickstart.yaml\ndata: t2ikit.shapes.ShapesData\nstages: {a: , b: {data: t2ikit.shapes.ShapesData}}\n"
    )
    assert card_of(tmp_path / "e.yaml").needs == "no data (shapes are rendered); runs on a CPU"


@pytest.mark.parametrize("name", shipped_names())
def test_a_copy_says_the_same(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    source = find_experiment(name)
    copy.write_text(copied(source, copy))
    assert all(part_of(copy, key) == part_of(source, key) for key in TOP_KEYS if key != "run")
    assert f"experiments/{name}.yaml" not in copy.read_text()


def test_show_and_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert "level_kind: t" in run(capsys, "show", "quickstart")[1]
    assert "nearest known: 'quickstart'" in run(capsys, "show", "quikstart")[2]
    assert run(capsys, "copy", "quickstart")[0] == 0 and Path("quickstart.yaml").is_file()
    assert "--force" in run(capsys, "copy", "quickstart")[2]
    assert run(capsys, "copy", "quickstart", "--force")[0] == 0
    assert run(capsys, "copy", "synthreal/rgb", "new/rgb.yaml")[0] == 0
    assert "lightning run new/rgb.yaml --data.train DIR" in Path("new/rgb.yaml").read_text()
    assert "a file *.yaml" in run(capsys, "copy", "quickstart", "mine")[2]
    Path("cad_i_ta.yaml").write_text("extends: [base/imagenet256.yaml]\n")
    assert "would be taken for it" in run(capsys, "copy", "cad_i_crop")[2] and not Path("cad_i_crop.yaml").exists()
    assert not list(Path().glob(".*"))


def test_commands_take_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "quickstart", "--print_config"]) == 0
    assert "name: quickstart" in capsys.readouterr().out
    assert cli.main(["sweep", "shapes_recipe", "--list", "--scores", "scores"]) == 0
    assert cli.main(["sweep", "shapes_recip", "--list"]) == 2
    assert "nearest known: 'shapes_recipe'" in capsys.readouterr().err
    assert cli.main(["verify-resume", "quikstart"]) == 2
    assert "nearest known: 'quickstart'" in capsys.readouterr().err
