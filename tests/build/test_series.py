"""A patch that is not exactly what was exported does not pass."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from build_helpers import commit, patch_files, replace_line
from dflash_tools.fork.series import patch_name, read_series, validate
from dflash_tools.fork.workspace import Workspace, find_workspace
from dflash_tools.fork.worktree import checkout, export

FIRST = "switch/0001-name-the-tenth-line.patch"
SECOND = "loop/0002-add-a-loop.patch"


def problems(ws: Workspace) -> list[str]:
    return [f"{result.name}: {p}" for result in validate(ws) for p in result.problems]


def edit(ws: Workspace, name: str, old: bytes, new: bytes) -> None:
    path = ws.patches / name
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def test_exported_series_is_proven_and_leaves_nothing_behind(series):
    before = sorted(series.made.iterdir())
    results = validate(series)
    assert [(r.name, r.problems) for r in results] == [("", ()), (FIRST, ()), (SECOND, ())]
    assert sorted(series.made.iterdir()) == before


def test_validate_needs_the_pinned_objects_and_no_work_tree(series):
    import shutil

    shutil.rmtree(series.tree)
    assert problems(series) == []


def test_no_patches_at_all_is_a_valid_series(fetched):
    assert problems(fetched) == []


def test_unlisted_file_is_refused(series):
    (series.patches / "loop" / "0003-forgotten.patch").write_bytes((series.patches / SECOND).read_bytes())
    (series.patches / "note.txt").write_text("x")
    assert [p.split(":")[1].strip() for p in problems(series)] == ["loop/0003-forgotten.patch", "note.txt"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("loop/0003-absent.patch", "no such file"),
        (FIRST, "listed twice"),
        ("../outside.patch", "not of the form"),
        ("/etc/passwd", "not of the form"),
        ("", "only at the top"),
        ("# a comment below", "only at the top"),
    ],
)
def test_bad_line_in_the_list_is_refused(series, line, said):
    with (series.patches / "series").open("a") as f:
        f.write(line + "\n")
    (problem,) = problems(series)
    assert said in problem and repr(line)[1:-1] in problem


@pytest.mark.parametrize("key", [b"Why", b"Upstream", b"Drop-when"])
def test_missing_or_empty_header_line_is_refused(series, key):
    edit(series, FIRST, key + b": ", key + b":\nX: ")
    assert any(p == f"{FIRST}: no '{key.decode()}:' line in the header" for p in problems(series))


def test_hunk_that_fits_only_at_an_offset_is_refused(series):
    """git apply would take it without a word."""
    edit(series, FIRST, b"@@ -7,7 +7,7 @@", b"@@ -9,7 +9,7 @@")
    (problem,) = problems(series)
    assert "does not round-trip" in problem and "offset" in problem


def test_hunk_that_lands_on_another_of_two_equal_places_is_refused(fetched):
    """The dangerous one: it applies, at the wrong place. Only the place it was exported from is right."""
    checkout(fetched)
    lines = (fetched.tree / "src" / "twice.cpp").read_text().splitlines(keepends=True)
    lines[15] = "case 5: run();\n"
    commit(fetched, "loop : run five", {"src/twice.cpp": "".join(lines)})
    (name,) = export(fetched)
    edit(fetched, name, b"@@ -13,7 +13,7 @@", b"@@ -23,7 +23,7 @@")
    (problem,) = problems(fetched)
    assert "does not round-trip" in problem


def test_context_that_only_nearly_fits_is_refused(series):
    edit(series, FIRST, b" int line_9 = 9;", b" int line_9 = 99;")
    found = problems(series)
    assert "does not apply" in found[0] and "src/long.cpp" in found[0]
    assert found[1] == f"{SECOND}: not tried, because {FIRST} does not apply"


def test_patch_made_on_another_text_of_the_same_context_is_refused(series):
    """Hashes of the whole file: a change far from the hunk shows as well."""
    data = (series.patches / FIRST).read_bytes()
    at = data.index(b"index ") + 6
    edit(series, FIRST, data[at : at + 40], b"1" * 40)
    (problem,) = problems(series)
    assert "does not round-trip" in problem


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"From 0000000000", b"From 1230000000", "forty zeros"),
        (b"[PATCH] ", b"[PATCH 1/2] ", "without numbers"),
        (b"switch : name", b"name", "module : title"),
        (b"name the tenth line", b"rename the tenth line", "place and subject name it"),
        (b"Why: it is needed.", b"Why: it is needed. ", "does not round-trip"),
        (b" 1 file changed", b" 2 files changed", "does not round-trip"),
    ],
)
def test_other_form_than_export_writes_is_refused(series, old, new, said):
    edit(series, FIRST, old, new)
    assert any(said in p for p in problems(series)), problems(series)


def test_short_hashes_and_signature_are_refused(series):
    data = (series.patches / FIRST).read_bytes()
    at = data.index(b"index ")
    line = data[at : data.index(b"\n", at)]
    edit(series, FIRST, line, line[:13] + b".." + line[48:55] + b" 100644")
    with (series.patches / FIRST).open("ab") as f:
        f.write(b"-- \n2.39.5\n\n")
    found = " ".join(problems(series))
    assert "--full-index" in found and "no signature" in found


@pytest.mark.parametrize("name", ["src/new.cpp", "CMakeLists.txt", "kernels/a.cuh"])
def test_non_ascii_in_code_is_refused(fetched, name):
    checkout(fetched)
    commit(fetched, "loop : speak", {name: "// déjà vu\n"})
    with pytest.raises(Exception, match=f"adds non-ASCII text to {name}: '// d"):
        export(fetched)


def test_non_ascii_in_documents_and_in_untouched_code_is_fine(fetched):
    checkout(fetched)
    commit(fetched, "loop : speak — at last", {"README.md": "Déjà vu!\n"})
    export(fetched)
    assert problems(fetched) == []


def test_carriage_return_in_code_is_refused(fetched):
    checkout(fetched)
    commit(fetched, "loop : speak", {"src/new.cpp": "int a;\r\n"})
    with pytest.raises(Exception, match="carriage return"):
        export(fetched)


def test_binary_file_is_refused(fetched):
    checkout(fetched)
    commit(fetched, "loop : add data", {"data.bin": bytes(range(256))})
    with pytest.raises(Exception, match="binary"):
        export(fetched)


def test_broken_patch_files_are_refused_and_never_a_crash(series):
    good = (series.patches / FIRST).read_bytes()
    for data in (b"", b"\n", b"\xff\xfe\x00", good[: len(good) // 2], good + good, good.replace(b"\n", b"\r\n")):
        (series.patches / FIRST).write_bytes(data)
        assert any(p.startswith(FIRST) for p in problems(series)), data[:40]


def test_hunk_lines_that_look_like_headers_do_not_hide_added_text(fetched):
    """A removed '-- x' shows as '--- x', an added '++ x' as '+++ x'."""
    checkout(fetched)
    commit(fetched, "loop : decrement", {"src/minus.cpp": "-- a/x.md;\n"})
    commit(fetched, "loop : increment", {"src/minus.cpp": "++ b/x.md;\n// déjà\n"})
    with pytest.raises(Exception, match=r"adds non-ASCII text to src/minus\.cpp"):
        export(fetched)


def test_name_follows_from_place_and_subject():
    assert patch_name(3, "recurrent : replay accepted rows") == "recurrent/0003-replay-accepted-rows.patch"
    assert patch_name(12, "kv : q4_0 K/V (2x), fast!") == "kv/0012-q4-0-k-v-2x-fast.patch"
    assert patch_name(1, "no module") is None and patch_name(1, "Upper : x") is None
    long = patch_name(1, "loop : " + "word " * 40)
    assert long is not None and len(long) < 80 and long.endswith("word.patch")


def test_comment_at_the_top_of_the_list_survives_export(series):
    path = series.patches / "series"
    path.write_text("# why this order\n\n" + path.read_text())
    export(series)
    assert path.read_text() == f"# why this order\n\n{FIRST}\n{SECOND}\n"


def test_patches_depend_on_their_predecessors(series):
    (series.patches / "series").write_text(f"{SECOND}\n{FIRST}\n")
    found = problems(series)
    assert all("place and subject name it" in p for p in found) and len(found) == 2


def test_commits_of_the_series_depend_on_nothing_but_the_patches(series, monkeypatch):
    first = validate(series)[-1].commit
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2001-01-01T00:00:00Z")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Else")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.sleep(0.01)
    assert validate(series)[-1].commit == first


def test_hunk_order_of_files_and_user_configuration_do_not_matter(series, monkeypatch, tmp_path):
    config = tmp_path / "gitconfig"
    config.write_text("[diff]\n\tnoprefix = true\n\tcontext = 9\n\talgorithm = patience\n[format]\n\tsignOff = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    before = patch_files(series)
    replace = replace_line(series, "src/loop.cpp", "void", "static void")
    commit(series, "loop : make it static", replace)
    export(series)
    assert {name: patch_files(series)[name] for name in (FIRST, SECOND)} == {n: before[n] for n in (FIRST, SECOND)}


# the real series


def test_the_real_series_is_valid_within_ten_seconds():
    ws = find_workspace(Path(__file__))
    from dflash_tools.fork.source import fetch_source

    fetch_source(ws)
    start = time.monotonic()
    found = problems(ws)
    assert not found, "\n".join(found)
    assert time.monotonic() - start < 10
    assert len(validate(ws)) == len(read_series(ws.patches).names) + 1
