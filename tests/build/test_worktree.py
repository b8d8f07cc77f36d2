"""Patches go to commits and back without loss, and nobody's work is overwritten."""

from __future__ import annotations

import shutil

import pytest
from build_helpers import HEADER, commit, patch_files, replace_line, run_git, with_pin
from dflash_tools.errors import UserError
from dflash_tools.fork.series import validate
from dflash_tools.fork.source import fetch_source
from dflash_tools.fork.worktree import BEFORE_FORCE, checkout, export


def subjects(ws) -> list[str]:
    return run_git("log", "--reverse", "--format=%s", "pinned..HEAD", cwd=ws.tree).splitlines()


def test_checkout_makes_the_pinned_tree_with_each_patch_as_a_commit(series):
    shutil.rmtree(series.tree)
    checkout(series)
    assert subjects(series) == ["switch : name the tenth line", "loop : add a loop"]
    assert run_git("rev-parse", "pinned^{tree}", cwd=series.tree) == series.pin.tree
    assert run_git("status", "--porcelain", cwd=series.tree) == ""
    assert "int tenth = 10;" in (series.tree / "src" / "long.cpp").read_text()
    author = run_git("log", "-1", "--format=%an <%ae> %aI", cwd=series.tree)
    assert author == "A. Person <a@example.org> 2026-01-02T03:04:05+02:00"


def test_export_of_a_fresh_checkout_changes_no_byte(series):
    before = patch_files(series)
    shutil.rmtree(series.tree)
    head = checkout(series)
    assert export(series) == [name for name in before["series"].decode().split()]
    assert patch_files(series) == before
    shutil.rmtree(series.tree)
    assert checkout(series) == head, "the same patches make the same commits, anywhere and at any time"


@pytest.mark.parametrize(
    ("subject", "header", "edits"),
    [
        ("loop : speak Ünïcode — twice", HEADER + "\n\nNaïve paragraph.\n\n    indented\n\n* list\n* list", {}),
        ("loop : " + "a very long subject that has to be folded in a mail header " * 2 + "end", HEADER, {}),
        ("loop : [x] brackets", HEADER.replace("needed.", "needed,\non two lines."), {}),
        ("loop : keep odd files", HEADER, {"no-newline.txt": "a\nb", "spaces in name.txt": "  \t\n", "empty.txt": ""}),
        ("loop : touch a dos file", HEADER, {"dos.txt": b"one\r\nthree\r\n"}),
        ("loop : From the start", HEADER + "\n\nFrom here on it differs.\n>From quoted", {}),
    ],
)
def test_round_trip_of_odd_messages_and_files(fetched, subject, header, edits):
    checkout(fetched)
    head = commit(fetched, subject.strip(), edits or {"x.txt": "x\n"}, header)
    export(fetched)
    before = patch_files(fetched)
    tree = run_git("rev-parse", f"{head}^{{tree}}", cwd=fetched.tree)
    message = run_git("log", "-1", "--format=%B", head, cwd=fetched.tree)
    shutil.rmtree(fetched.tree)
    again = checkout(fetched)
    assert run_git("rev-parse", f"{again}^{{tree}}", cwd=fetched.tree) == tree
    assert run_git("log", "-1", "--format=%B", again, cwd=fetched.tree) == message
    export(fetched)
    assert patch_files(fetched) == before


def test_mode_changes_deletions_renames_and_links_survive(fetched):
    checkout(fetched)
    run_git("mv", "src/long.cpp", "src/longer.cpp", cwd=fetched.tree)
    run_git("rm", "-q", "kept.o", cwd=fetched.tree)
    (fetched.tree / "tool.sh").chmod(0o644)
    (fetched.tree / "link").unlink()
    (fetched.tree / "link").symlink_to("README.md")
    head = commit(fetched, "loop : move things", {})
    export(fetched)
    tree = run_git("rev-parse", f"{head}^{{tree}}", cwd=fetched.tree)
    shutil.rmtree(fetched.tree)
    assert run_git("rev-parse", f"{checkout(fetched)}^{{tree}}", cwd=fetched.tree) == tree


def test_message_that_a_mail_cannot_carry_is_refused_before_anything_is_written(series):
    before = patch_files(series)
    commit(series, "loop : cut", {"x.txt": "x\n"}, HEADER + "\n---\nlost in the mail")
    with pytest.raises(UserError, match="nothing was exported"):
        export(series)
    assert patch_files(series) == before


def test_reworded_dropped_and_reordered_commits_rename_and_remove_files(series):
    run_git("reset", "-q", "--hard", "pinned", cwd=series.tree)
    commit(series, "kv : something else first", {"kv.txt": "kv\n"})
    commit(series, "loop : add a loop", {"src/loop.cpp": "void loop() {}\n"})
    assert export(series) == ["kv/0001-something-else-first.patch", "loop/0002-add-a-loop.patch"]
    assert sorted(patch_files(series)) == ["kv/0001-something-else-first.patch", "loop/0002-add-a-loop.patch", "series"]
    assert not (series.patches / "switch").exists()
    assert [p for r in validate(series) for p in r.problems] == []


def test_file_beside_the_patches_survives_export(series):
    (series.patches / "backend-ops").write_text("RMS_NORM\n")
    export(series)
    assert (series.patches / "backend-ops").read_text() == "RMS_NORM\n"


def test_all_patches_can_go(series):
    run_git("reset", "-q", "--hard", "pinned", cwd=series.tree)
    assert export(series) == []
    assert patch_files(series) == {"series": b""}


@pytest.mark.parametrize(
    ("subject", "header", "said"),
    [("no module", HEADER, "module : title"), ("loop : x", "Why: because.", "no 'Upstream:' line")],
)
def test_commit_that_makes_no_valid_patch_is_not_exported(series, subject, header, said):
    before = patch_files(series)
    commit(series, subject, {"x.txt": "x\n"}, header)
    with pytest.raises(UserError, match=said):
        export(series)
    assert patch_files(series) == before


def test_edits_that_are_not_committed_stop_export_and_checkout(series):
    (series.tree / "src" / "loop.cpp").write_text("void loop() { /* better */ }\n")
    with pytest.raises(UserError, match=r"src/loop\.cpp changed and not committed"):
        export(series)
    with pytest.raises(UserError, match=r"1 edited file \(src/loop\.cpp\)"):
        checkout(series)
    assert "better" in (series.tree / "src" / "loop.cpp").read_text()


def test_commits_that_are_not_exported_stop_checkout(series):
    commit(series, "loop : more", {"x.txt": "x\n"})
    with pytest.raises(UserError, match="1 commit since the last checkout or export"):
        checkout(series)
    export(series)
    checkout(series)
    assert (series.tree / "x.txt").is_file()


def test_commits_that_were_dropped_stop_checkout_until_exported(series):
    run_git("reset", "-q", "--hard", "HEAD~1", cwd=series.tree)
    with pytest.raises(UserError, match="fewer commits than exported"):
        checkout(series)


def test_force_sets_the_work_aside_where_it_can_be_found(series):
    commit(series, "loop : more", {"x.txt": "x\n"})
    (series.tree / "src" / "loop.cpp").write_text("edited\n")
    checkout(series, force=True)
    assert subjects(series) == ["switch : name the tenth line", "loop : add a loop"]
    assert run_git("status", "--porcelain", cwd=series.tree) == ""
    assert run_git("show", f"{BEFORE_FORCE}:src/loop.cpp", cwd=series.tree) == "edited"
    assert run_git("show", f"{BEFORE_FORCE}:x.txt", cwd=series.tree) == "x"


def test_rebase_in_progress_stops_both(series):
    run_git("checkout", "-q", "-b", "other", "pinned", cwd=series.tree)
    commit(series, "loop : clash", {"src/loop.cpp": "different\n"})
    with pytest.raises(AssertionError):
        run_git("rebase", "fork", cwd=series.tree)
    with pytest.raises(UserError, match="rebase"):
        export(series)
    with pytest.raises(UserError, match="rebase"):
        checkout(series)
    checkout(series, force=True)
    assert run_git("status", "--porcelain", cwd=series.tree) == ""


def test_checkout_after_a_pull_follows_patches_and_touches_only_what_changed(series):
    """Incremental builds depend on the times of files."""
    old = {name: (series.tree / name).stat().st_mtime_ns for name in ("src/new.cpp", "src/long.cpp")}
    names = (series.patches / "series").read_text().splitlines()
    (series.patches / "series").write_text(f"{names[0]}\n")  # as if the second had been dropped upstream
    (series.patches / names[1]).unlink()
    checkout(series)
    assert not (series.tree / "src" / "loop.cpp").exists()
    assert {name: (series.tree / name).stat().st_mtime_ns for name in old} == old


def test_files_git_does_not_know_stay_and_are_named_at_export(series):
    (series.tree / "notes.txt").write_text("mine")
    (series.tree / "build").mkdir()
    (series.tree / "build" / "x.o").write_text("ignored")
    checkout(series)
    lines: list[str] = []
    export(series, say=lines.append)
    assert (series.tree / "notes.txt").read_text() == "mine"
    assert lines == ["not exported, because git does not know them: notes.txt"]


def test_patch_that_does_not_apply_leaves_the_work_tree_alone(series):
    head = run_git("rev-parse", "HEAD", cwd=series.tree)
    path = series.patches / "switch" / "0001-name-the-tenth-line.patch"
    path.write_bytes(path.read_bytes().replace(b"line_9 ", b"line_99 "))
    with pytest.raises(UserError, match=r"0001-name-the-tenth-line\.patch: does not apply.*src/long\.cpp"):
        checkout(series)
    assert run_git("rev-parse", "HEAD", cwd=series.tree) == head
    shutil.rmtree(series.tree)
    with pytest.raises(UserError, match="does not apply"):
        checkout(series)
    assert not series.tree.exists() and not list(series.made.glob("tmp-*"))


def test_merge_and_foreign_history_are_refused(series):
    run_git("checkout", "-q", "-b", "side", "pinned", cwd=series.tree)
    commit(series, "loop : side", {"side.txt": "x\n"})
    run_git("checkout", "-q", "fork", cwd=series.tree)
    run_git("merge", "-q", "--no-ff", "-m", "merge", "side", cwd=series.tree)
    with pytest.raises(UserError, match="is a merge"):
        export(series)
    run_git("checkout", "-q", "--orphan", "lost", cwd=series.tree)
    run_git("commit", "-q", "-m", "loop : lost", cwd=series.tree)
    with pytest.raises(UserError, match="does not stand on the pinned commit"):
        export(series)


def test_series_moves_to_another_pin_as_the_documentation_says(series, upstream):
    new = run_git("rev-parse", "master", cwd=upstream.repo)
    assert new != series.pin.commit
    run_git("fetch", "-q", "--depth=1", f"file://{upstream.repo}", new, cwd=series.tree)
    run_git("rebase", "-q", "--onto", new, "pinned", "fork", cwd=series.tree)
    run_git("tag", "-f", "pinned", new, cwd=series.tree)
    shutil.rmtree(series.pinned_git)
    moved = with_pin(series, commit=new, tree=run_git("rev-parse", f"{new}^{{tree}}", cwd=upstream.repo))
    fetch_source(moved, upstream.repo)
    assert len(export(moved)) == 2
    assert [p for r in validate(moved) for p in r.problems] == []
    checkout(moved)


def test_export_and_checkout_say_what_to_do_when_they_cannot_start(fetched):
    with pytest.raises(UserError, match="build-fork checkout"):
        export(fetched)
    fetched.tree.mkdir()
    with pytest.raises(UserError, match="in the way"):
        checkout(fetched)


def test_replaced_line_helper_edits(series):
    """The helper above must really edit, or half of these tests prove nothing."""
    assert replace_line(series, "src/new.cpp", "0", "1") == {"src/new.cpp": "int main() { return 1; }\n"}
