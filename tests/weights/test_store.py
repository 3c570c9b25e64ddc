"""Weights come back as they were saved, and whatever does not fit is refused with everything that is wrong with it."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from lowmem_brats.config import NetworkConfig, SegmentConfig
from lowmem_brats.config.setting import settings_of
from lowmem_brats.data.labels import Region
from lowmem_brats.errors import InputError, WeightsError
from lowmem_brats.networks import SliceNetwork, build_network
from lowmem_brats.weights import store as weights
from lowmem_brats.weights.file import load_network, save_network
from lowmem_brats.weights.header import WeightsFile, read_header
from lowmem_brats.weights.index import write_index
from lowmem_brats.weights.store import WeightsSet, open_set, shipped_names

TINY = NetworkConfig(width=8, depth=1)
ONE = NetworkConfig(width=8, depth=1, outputs=3)


def tiny_network(seed: int = 0, config: NetworkConfig = TINY) -> SliceNetwork:
    """Return a network with fresh weights."""
    torch.manual_seed(seed)
    return build_network(config)


def describe(path: Path, region: Region = Region.WT, config: NetworkConfig = TINY) -> WeightsFile:
    """Return a header with something in every field."""
    return WeightsFile(path, (region,), config, {"training_cases": 3, "steps": 7}, {"validation_dice": 0.5})


@pytest.fixture
def saved(tmp_path: Path) -> WeightsFile:
    """A sound weights file."""
    file = describe(tmp_path / "wt.safetensors")
    save_network(tiny_network(), file)
    return file


@pytest.fixture
def whole_set(tmp_path: Path) -> Path:
    """A folder with a sound set called `toy`."""
    folder = tmp_path / "toy"
    folder.mkdir()
    paths = {region: folder / f"{region.value}.safetensors" for region in Region}
    for seed, (region, path) in enumerate(paths.items()):
        save_network(tiny_network(seed), describe(path, region))
    write_index(folder, "toy", paths)
    return folder


def with_views(whole: Path, folder: Path, views: int) -> Path:
    """Write a set to `folder` whose networks see from so many sides; returns `folder`."""
    folder.mkdir()
    paths = {region: folder / f"{region.value}.safetensors" for region in Region}
    for path, file in zip(paths.values(), open_set(str(whole)).files, strict=True):
        network = dataclasses.replace(file.network, views=views)
        save_network(load_network(file), dataclasses.replace(file, path=path, network=network))
    write_index(folder, folder.name, paths)
    return folder


def header_of(path: Path) -> dict[str, str]:
    """Return the metadata as stored."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors as stored."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def rewrite(path: Path, header: dict[str, str] | None = None, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Replace parts of a weights file by what this version would not write."""
    save_file(tensors or tensors_of(path), path, header_of(path) | (header or {}))


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a set's index in place."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


# Saving and loading


@pytest.mark.parametrize("config", [TINY, NetworkConfig(width=16, depth=2, norm="batch")], ids=["group", "batch"])
def test_weights_come_back_rounded_to_fp16(tmp_path: Path, config: NetworkConfig) -> None:
    network = tiny_network(config=config)
    network(torch.randn(2, 4, 16, 16))  # batch norm: statistics and a step count to keep
    file = describe(tmp_path / "x.safetensors", config=config)
    save_network(network, file)
    loaded = load_network(read_header(file.path))
    assert not loaded.training
    assert list(loaded.state_dict()) == list(network.state_dict())
    for key, tensor in network.state_dict().items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        got = loaded.state_dict()[key]
        assert (got.dtype, got.device.type) == (tensor.dtype, "cpu"), key
        assert torch.equal(got, expected), key
    assert all(p.requires_grad for p in loaded.parameters()), "ready to be trained on"
    slices_NCHW = torch.randn(1, 4, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(slices_NCHW), network.eval()(slices_NCHW), rtol=0.02, atol=0.02)


def test_channels_last_networks_are_saved_alike(saved: WeightsFile, tmp_path: Path) -> None:
    other = describe(tmp_path / "other.safetensors")
    save_network(tiny_network().to(memory_format=torch.channels_last), other)  # type: ignore[call-overload]
    expected, got = tensors_of(saved.path), tensors_of(other.path)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_saving_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    network = tiny_network()
    save_network(network, describe(tmp_path / "x.safetensors"))
    for key, tensor in tiny_network().state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor), key


def test_header_says_what_the_file_is(saved: WeightsFile) -> None:
    assert read_header(saved.path) == saved
    header = header_of(saved.path)
    assert header["format"] == "lowmem-brats/1"
    assert header["preprocessing"] == "zscore-brain"
    assert header["modalities"] == "t1 t1ce t2 flair"
    assert header["region"] == "wt"
    assert json.loads(header["network"]) == {
        "name": "unet2d",
        "width": 8,
        "depth": 1,
        "norm": "group",
        "outputs": 1,
        "views": 1,
        "context": 0,
    }
    assert json.loads(header["training"]) == {"training_cases": 3, "steps": 7}
    assert json.loads(header["metrics"]) == {"validation_dice": 0.5}
    assert {tensor.dtype for tensor in tensors_of(saved.path).values()} == {torch.float16}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("bug")])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_save_leaves_nothing_new(
    tmp_path: Path, error: BaseException, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = describe(tmp_path / "wt.safetensors")
    if existing:
        file.path.write_bytes(b"what was there before")

    def write_half(path: Path, content: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(content[: len(content) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", write_half)
    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        save_network(tiny_network(), file)
    assert [p.name for p in tmp_path.iterdir()] == (["wt.safetensors"] if existing else [])
    assert not existing or file.path.read_bytes() == b"what was there before"


def test_a_folder_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        save_network(tiny_network(), describe(tmp_path / "absent" / "wt.safetensors"))


# One file that does not fit


def test_every_mismatch_in_one_error(saved: WeightsFile) -> None:
    tensors = tensors_of(saved.path)
    del tensors["head.bias"]
    tensors["tail.weight"] = torch.zeros(2)
    tensors["head.weight"] = torch.zeros(1, 4, 1, 1)
    rewrite(saved.path, tensors=tensors)
    with pytest.raises(WeightsError) as caught:
        load_network(read_header(saved.path))
    assert caught.value.where == str(saved.path)
    assert caught.value.found == (
        "head.bias missing; head.weight (1, 4, 1, 1) instead of (1, 8, 1, 1); tail.weight unexpected"
    )


@pytest.mark.parametrize(
    "network",
    [
        '{"name": "unet2d", "width": 16, "depth": 1, "norm": "group"}',
        '{"name": "unet2d", "width": 8, "depth": 2, "norm": "group"}',
        '{"name": "unet2d", "width": 8, "depth": 1, "norm": "batch"}',
        '{"name": "unet2d", "width": 1048576, "depth": 5, "norm": "group"}',  # petabytes, were it allocated
    ],
)
def test_weights_of_another_network(saved: WeightsFile, network: str) -> None:
    rewrite(saved.path, {"network": network})
    with pytest.raises(WeightsError, match=r"instead of|missing"):
        load_network(read_header(saved.path))


def test_header_of_another_kind_lists_all_of_it(saved: WeightsFile) -> None:
    rewrite(saved.path, {"format": "lowmem-brats/9", "preprocessing": "minmax", "modalities": "flair t1 t1ce t2"})
    with pytest.raises(WeightsError) as caught:
        read_header(saved.path)
    assert caught.value.found == "format 'lowmem-brats/9', preprocessing 'minmax', modalities 'flair t1 t1ce t2'"
    expected = "format 'lowmem-brats/1', preprocessing 'zscore-brain', modalities 't1 t1ce t2 flair'"
    assert caught.value.expected == expected


@pytest.mark.parametrize("key", ["format", "preprocessing", "modalities"])
def test_one_wrong_key_is_enough(saved: WeightsFile, key: str) -> None:
    rewrite(saved.path, {key: "other"})
    with pytest.raises(WeightsError) as caught:
        read_header(saved.path)
    assert caught.value.found == f"{key} 'other'"


def test_a_setting_that_is_gone_may_have_its_only_meaningful_value(saved: WeightsFile) -> None:
    rewrite(saved.path, {"network": json.dumps(dataclasses.asdict(TINY) | {"members": 1})})
    assert read_header(saved.path) == saved


def test_safetensors_of_somebody_else(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="format None"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("region", "brainstem"),
        ("network", "not json"),
        ("network", "null"),
        ("network", "[8]"),
        ("network", '{"width": "8"}'),
        ("network", '{"width": 8.0}'),
        ("network", '{"width": 12}'),
        ("network", '{"width": 8000000000000}'),
        ("network", '{"width": 800000000000000000000000}'),
        ("network", '{"depth": 9}'),
        ("network", '{"members": 2}'),
        ("network", '{"colour": "red"}'),
        ("network", '{"name": "transformer"}'),
        ("network", '{"name": []}'),
        ("training", ""),
        ("metrics", "{"),
    ],
)
def test_header_that_makes_no_sense(saved: WeightsFile, key: str, value: str) -> None:
    rewrite(saved.path, {key: value})
    with pytest.raises(WeightsError, match="header not understood"):
        read_header(saved.path)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -1])
def test_truncated_file(saved: WeightsFile, kept: int) -> None:
    saved.path.write_bytes(saved.path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_header(saved.path)


class _Payload:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, write: Callable[[Any, Path], object]) -> None:
    path, trace = tmp_path / "wt.safetensors", tmp_path / "trace"
    write({"head.weight": _Payload(trace)}, path)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_header(path)
    assert not trace.exists()


@given(content=st.binary(max_size=400))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_a_weights_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "noise.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        read_header(path)


@given(at=st.integers(0, 3000), value=st.integers(0, 255))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_wrong_byte_in_the_header_loads_or_is_a_weights_error(saved: WeightsFile, at: int, value: int) -> None:
    content = bytearray(saved.path.read_bytes())
    content[at] = value
    path = saved.path.with_name("flipped.safetensors")
    path.write_bytes(content)
    try:
        network = load_network(read_header(path))
    except WeightsError:
        return
    assert network.state_dict().keys() == tiny_network().state_dict().keys()


# Sets


def test_a_set_opens_by_its_folder(whole_set: Path) -> None:
    found = open_set(str(whole_set))
    assert found.name == "toy"
    assert [file.regions for file in found.files] == [(region,) for region in Region]
    for seed, (region, file) in enumerate(zip(Region, found.files, strict=True)):
        assert file == describe(whole_set / f"{region.value}.safetensors", region)
        expected = tiny_network(seed).head.weight.half().float()
        assert torch.equal(load_network(file).head.weight, expected)


def test_a_shipped_set_opens_by_name_by_default_and_by_folder(whole_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHIPPED", whole_set)
    edit_index(whole_set, lambda index: index["sets"].update(other=index["sets"]["toy"]))
    assert open_set().name == "toy"
    assert open_set("toy").name == "toy"
    assert open_set("other").name == "other"
    assert open_set(str(whole_set)).name == "toy"


def test_every_shipped_set_is_whole_and_named_in_the_help() -> None:
    told = settings_of(SegmentConfig)["weights"].help
    for name in shipped_names():
        assert name in told
        found = open_set(name)
        assert {region for file in found.files for region in file.regions} == set(Region)
        for file in found.files:
            load_network(file)  # finite, and every tensor there


def test_several_sets_open_as_one(whole_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single, pair = one_network_set(tmp_path / "one"), with_views(whole_set, tmp_path / "pair", 2)
    twice = open_set([str(pair), str(pair)])
    assert (twice.name, twice.network) == ("pair + pair", dataclasses.replace(TINY, views=2))
    with pytest.raises(WeightsError, match="expected sets of one kind") as caught:
        open_set([str(whole_set), str(single)])
    assert caught.value.found.startswith("toy: NetworkConfig(")
    # The shipped default may be several.
    monkeypatch.setattr(weights, "SHIPPED", pair)
    edit_index(pair, lambda index: index["sets"].update(other=index["sets"]["pair"]))
    edit_index(pair, lambda index: index.update(default=["pair", "other"]))
    assert (open_set().name, len(open_set().files)) == ("pair + other", 6)
    assert open_set(alone=True) == open_set("pair")
    assert open_set(str(pair)) == open_set()
    assert open_set("other").name == "other"
    edit_index(pair, lambda index: index.update(default=["pair", "third"]))
    with pytest.raises(WeightsError, match="weights 'third': no such set"):
        open_set()


def test_networks_of_several_sets_are_grouped_by_region() -> None:
    files = tuple(describe(Path(name), region) for name in "ab" for region in Region)
    found = WeightsSet("several", files).by_region()
    assert [[file.path.name for file in group] for group in found] == [["a", "b"]] * 3
    assert [{file.regions for file in group} for group in found] == [{(region,)} for region in Region]


@pytest.mark.parametrize("views", [1, 2])
def test_more_sets_than_views_are_refused(whole_set: Path, tmp_path: Path, views: int) -> None:
    names = [str(with_views(whole_set, tmp_path / "seeing", views))] * (views + 1)
    assert len(open_set(names[:views]).files) == 3 * views
    with pytest.raises(
        WeightsError, match=rf"--weights: {views + 1} sets; expected at most {views}: .*Name fewer sets"
    ):
        open_set(names)
    assert open_set(names, alone=True) == open_set(names[0])


@pytest.mark.parametrize("name", ["nope", "", "/no/such/folder"])
def test_unknown_set(whole_set: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHIPPED", whole_set)
    with pytest.raises(WeightsError, match=r"no such set or folder; expected a folder or one of: toy\."):
        open_set(name)


def test_opening_reads_no_tensors(whole_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    files = open_set(str(whole_set)).files
    assert all(dataclasses.is_dataclass(file) for file in files)
    assert not any(isinstance(v, torch.Tensor) for file in files for v in vars(file).values())


def test_damage_and_loss_are_listed_together(whole_set: Path) -> None:
    wt, tc = whole_set / "wt.safetensors", whole_set / "tc.safetensors"
    content = bytearray(wt.read_bytes())
    content[-1] ^= 1
    wt.write_bytes(content)
    tc.unlink()
    with pytest.raises(WeightsError) as caught:
        open_set(str(whole_set))
    assert f"{wt}: checksum differs" in caught.value.found
    assert f"{tc}: missing" in caught.value.found
    assert "et.safetensors" not in caught.value.found


def one_network_set(
    folder: Path, regions: tuple[Region, ...] = tuple(Region), outputs: int = 3, views: int = 1
) -> Path:
    """Write a set of one network."""
    folder.mkdir()
    config = dataclasses.replace(ONE, outputs=outputs, views=views)
    path = folder / "wt-tc-et.safetensors"
    save_network(tiny_network(config=config), WeightsFile(path, regions, config, {}, {}))
    write_index(folder, "one", dict.fromkeys(Region, path))
    return folder


def test_one_network_of_three_regions_is_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    sha256 = weights.sha256_of
    folder = one_network_set(tmp_path / "one")
    monkeypatch.setattr(weights, "sha256_of", lambda path: reads.append(path) or sha256(path))
    opened = open_set(str(folder))
    assert [(file.regions, file.name) for file in opened.files] == [(tuple(Region), "wt tc et")]
    assert header_of(folder / "wt-tc-et.safetensors")["region"] == "wt tc et"
    assert reads == [folder / "wt-tc-et.safetensors"], "read once"
    assert load_network(opened.files[0])(torch.randn(1, 4, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("regions", "outputs"),
    [
        ((Region.WT, Region.TC), 3),
        (tuple(Region), 1),
        ((Region.WT, Region.TC, Region.TC), 3),
        ((Region.ET, Region.TC, Region.WT), 3),
        ((), 1),
    ],
)
def test_outputs_and_regions_must_agree(tmp_path: Path, regions: tuple[Region, ...], outputs: int) -> None:
    with pytest.raises(WeightsError, match=f"header not understood .* for {outputs} outputs"):
        open_set(str(one_network_set(tmp_path / "one", regions, outputs)))


def test_damage_of_one_network_is_listed_once(tmp_path: Path) -> None:
    folder = one_network_set(tmp_path / "one")
    path = folder / "wt-tc-et.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError) as caught:
        open_set(str(folder))
    assert caught.value.found.count("checksum differs") == 1


@pytest.mark.parametrize("region", Region)
def test_every_row_of_one_network_is_checked(tmp_path: Path, region: Region) -> None:
    folder = one_network_set(tmp_path / "one")
    edit_index(folder, lambda index: index["sets"]["one"][region.value].update(sha256="0" * 64))
    with pytest.raises(WeightsError, match=r"checksum differs, expected sha256 000000000000…"):
        open_set(str(folder))


def test_networks_do_not_mix(whole_set: Path, tmp_path: Path) -> None:
    """Three kinds of mixture: binary networks that differ, all regions beside one, all regions twice."""
    single = one_network_set(tmp_path / "one")
    paths = {region: whole_set / f"{region.value}.safetensors" for region in Region}
    (whole_set / "all.safetensors").write_bytes((single / "wt-tc-et.safetensors").read_bytes())
    save_network(tiny_network(9, ONE), WeightsFile(whole_set / "more.safetensors", tuple(Region), ONE, {}, {}))
    wide = NetworkConfig(width=16, depth=1)
    save_network(tiny_network(config=wide), describe(whole_set / "wide.safetensors", Region.TC, wide))
    for mixture, names in (
        ({Region.TC: "wide"}, ["wt", "wide", "et"]),
        ({Region.WT: "all"}, ["all", "tc", "et"]),
        (dict(zip(Region, ("all", "more", "all"), strict=True)), ["all", "more"]),
    ):
        replaced = {region: whole_set / f"{name}.safetensors" for region, name in mixture.items()}
        write_index(whole_set, "toy", paths | replaced)
        with pytest.raises(WeightsError, match="expected one network of all three regions, or three of one") as caught:
            open_set(str(whole_set))
        assert [text.split(".safetensors: ")[0] for text in caught.value.found.split("; ")] == names


def test_one_network_of_one_region_is_no_set(tmp_path: Path) -> None:
    folder = one_network_set(tmp_path / "one", (Region.WT,), 1)
    with pytest.raises(WeightsError) as caught:
        open_set(str(folder))
    assert "weights for wt, expected for tc" in caught.value.found
    assert "weights for wt, expected for et" in caught.value.found


def test_a_header_from_before_outputs_is_of_one_region(saved: WeightsFile) -> None:
    rewrite(saved.path, {"network": '{"name": "unet2d", "width": 8, "depth": 1, "norm": "group"}'})
    assert read_header(saved.path) == saved
    assert load_network(read_header(saved.path)).outputs == 1


def test_weights_of_another_region(whole_set: Path) -> None:
    def swap(index: dict[str, Any]) -> None:
        rows = index["sets"]["toy"]
        rows["wt"], rows["et"] = rows["et"], rows["wt"]

    edit_index(whole_set, swap)
    with pytest.raises(WeightsError) as caught:
        open_set(str(whole_set))
    assert "weights for et, expected for wt" in caught.value.found
    assert "weights for wt, expected for et" in caught.value.found


def test_a_region_without_weights(whole_set: Path) -> None:
    edit_index(whole_set, lambda index: index["sets"]["toy"].pop("tc"))
    with pytest.raises(WeightsError, match="no tc in toy"):
        open_set(str(whole_set))


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "\xff",
        "[]",
        "null",
        "{}",
        '{"sets": {}}',
        '{"default": 1, "sets": {}}',
        '{"default": [], "sets": {}}',
        '{"default": ["a", 1], "sets": {}}',
        '{"default": "a", "sets": []}',
        '{"default": "a", "sets": {"a": []}}',
        '{"default": "a", "sets": {"a": {"wt": "wt.safetensors"}}}',
        '{"default": "a", "sets": {"a": {"wt": {"file": "wt.safetensors"}}}}',
        '{"default": "a", "sets": {"a": {"wt": {"file": "wt.safetensors", "sha256": 1}}}}',
        '{"default": "a", "sets": {"a": {"wt": {"file": null, "sha256": "0"}}}}',
    ],
)
def test_missing_or_damaged_index(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "index.json").write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match="missing or damaged") as caught:
        open_set(str(tmp_path))
    assert caught.value.where == str(tmp_path / "index.json")


@pytest.mark.parametrize("share", [0.25, 0, 1])
def test_a_set_says_from_where_findings_are_doubtful(whole_set: Path, tmp_path: Path, share: float) -> None:
    """Of several sets the least counts, and none at all where one does not say."""
    assert open_set(str(whole_set)).min_confidence == 0
    edit_index(whole_set, lambda index: index["sets"]["toy"].update(min_confidence=share))
    assert open_set(str(whole_set)).min_confidence == share
    single = one_network_set(tmp_path / "one", views=2)
    edit_index(single, lambda index: index["sets"].update(other=index["sets"]["one"] | {"min_confidence": share}))
    edit_index(single, lambda index: index.update(default=["one", "other"]))
    assert open_set(str(single)).min_confidence == 0
    edit_index(single, lambda index: index["sets"]["one"].update(min_confidence=0.125))
    assert open_set(str(single)).min_confidence == min(share, 0.125)


def test_the_shipped_set_drops_what_is_a_third_as_sure() -> None:
    assert open_set().min_confidence == 0.35


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "0.5", None, True, [0.5]])
def test_a_share_that_is_none_is_refused(whole_set: Path, share: object) -> None:
    edit_index(whole_set, lambda index: index["sets"]["toy"].update(min_confidence=share))
    with pytest.raises(WeightsError, match="missing or damaged"):
        open_set(str(whole_set))


@pytest.mark.parametrize("way", ["..", "absolute", "link", "linked folder", "circle", "no name"])
def test_an_index_names_no_file_outside_its_folder(whole_set: Path, tmp_path: Path, way: str) -> None:
    outside = (whole_set / "wt.safetensors").rename(tmp_path / "wt.safetensors")
    name = {"..": "../wt.safetensors", "absolute": str(outside), "no name": "a\0b"}.get(way, "wt.safetensors")
    if way == "link":
        (whole_set / name).symlink_to(outside)
    if way == "circle":
        (whole_set / name).symlink_to(name)
    if way == "linked folder":
        (whole_set / "deep").symlink_to(tmp_path)
        name = "deep/wt.safetensors"
    edit_index(whole_set, lambda index: index["sets"]["toy"]["wt"].update(file=name))
    with pytest.raises(WeightsError, match="outside its folder, expected files beside it or below"):
        open_set(str(whole_set))


def test_a_set_may_lie_behind_a_link_and_in_folders_of_its_own(whole_set: Path, tmp_path: Path) -> None:
    (whole_set / "deep").mkdir()
    (whole_set / "wt.safetensors").rename(whole_set / "deep" / "wt.safetensors")
    edit_index(whole_set, lambda index: index["sets"]["toy"]["wt"].update(file="deep/../deep/wt.safetensors"))
    (tmp_path / "link").symlink_to(whole_set)
    assert open_set(str(tmp_path / "link")).name == "toy"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(["name", "width", "depth", "norm", "outputs", "views", "context", "members", "other"])


@given(st.dictionaries(FIELDS, JSON, max_size=3) | JSON, JSON, JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_no_header_is_a_traceback(saved: WeightsFile, network: object, training: object, metrics: object) -> None:
    """It is understood, of settings of the right kinds, or refused."""
    header = {"network": json.dumps(network), "training": json.dumps(training), "metrics": json.dumps(metrics)}
    rewrite(saved.path, header)
    try:
        found = read_header(saved.path)
    except WeightsError:
        return
    assert all(type(getattr(found.network, f.name)) is type(f.default) for f in dataclasses.fields(NetworkConfig))
    assert isinstance(found.training, dict)
    assert isinstance(found.metrics, dict)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("network", '{"views": 1.5}'),
        ("network", '{"views": 1.0}'),
        ("network", '{"views": true}'),
        ("network", '{"width": NaN}'),
        ("network", '{"width": 1e400}'),
        ("network", f'{{"width": {8 * 10**30}}}'),
        ("network", f'{{"width": {"9" * 5000}}}'),
        ("network", '{"width": "24"}'),
        ("network", '{"name": null}'),
        ("network", '{"name": ["unet2d"]}'),
        ("network", "[]"),
        ("network", "[" * 100_000),
        ("training", "[" * 100_000),
        ("training", "[]"),
        ("metrics", "1"),
        ("region", "wt wt"),
        ("region", ""),
    ],
)
def test_a_header_of_another_kind_is_refused(saved: WeightsFile, key: str, text: str) -> None:
    rewrite(saved.path, {key: text})
    with pytest.raises(WeightsError, match="header not understood") as caught:
        read_header(saved.path)
    assert len(str(caught.value)) < 600


def test_an_unfinished_training_is_told_from_a_damaged_set(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    with pytest.raises(WeightsError, match=r"no set yet; .* Go on: lowmem-brats train DATA -o FOLDER --resume"):
        open_set(str(tmp_path))


def test_a_deeply_nested_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="missing or damaged"):
        open_set(str(tmp_path))


def test_tensors_of_a_format_that_cannot_be_checked_are_refused(saved: WeightsFile) -> None:
    tensors = tiny_network().state_dict()
    tensors["head.bias"] = torch.zeros(1).to(torch.float8_e4m3fn)
    saved.path.write_bytes(save(tensors, header_of(saved.path)))
    with pytest.raises(WeightsError):
        load_network(read_header(saved.path))


def test_index_holds_relative_paths_and_checksums(whole_set: Path, tmp_path: Path) -> None:
    index = json.loads((whole_set / "index.json").read_text())
    assert index["default"] == "toy"
    assert {r: row["file"] for r, row in index["sets"]["toy"].items()} == {
        region.value: f"{region.value}.safetensors" for region in Region
    }
    assert all(len(row["sha256"]) == 64 for row in index["sets"]["toy"].values())
    whole_set.rename(tmp_path / "moved")
    assert open_set(str(tmp_path / "moved")).name == "toy"


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = build_network(NetworkConfig(width=8, depth=2))
    with torch.no_grad():
        network.head.bias.fill_(torch.nan)  # type: ignore[operator,union-attr]
    file = WeightsFile(tmp_path / "wt.safetensors", (Region.WT,), NetworkConfig(width=8, depth=2), {}, {})
    save_network(network, file)
    with pytest.raises(WeightsError, match=r"head\.bias holds NaN or infinity"):
        load_network(file)
