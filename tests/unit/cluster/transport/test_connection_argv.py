"""The command lines that reach ssh and rsync: compared whole, and with names that try to be
something else.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cluster.config import Server
from common.cluster.transport import connection as connection_module
from common.cluster.transport import openssh
from common.cluster.transport.connection import Ssh, connect
from common.cluster.transport.openssh import ConnectError, own_options, read_settings, ssh_options
from common.cluster.transport.process import Result
from common.cluster.transport.rsync import (
    Side,
    _once,
    by_linked_folder,
    copy,
    manual_rsync_command,
    quote_for_rsync,
    relative_names,
    rsync_argv,
)
from common.errors import InputError, NodeError
from tests.conftest import wait_until

WORDS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    min_size=1,
    max_size=5,
)


def rsync_splits(command: str) -> list[str]:
    """How rsync splits `-e` (main.c, do_cmd): at spaces outside quotes; inside, a doubled quote is
    one quote.
    """
    words, position = [], 0
    while position < len(command):
        if command[position] == " ":
            position += 1
            continue
        word, quote = "", ""
        while position < len(command) and (command[position] != " " or quote):
            char = command[position]
            if char in "'\"" and not quote:
                quote = char
            elif char == quote and command[position + 1 : position + 2] == quote:
                word += char
                position += 1
            elif char == quote:
                quote = ""
            else:
                word += char
            position += 1
        words.append(word)
    return words


@given(WORDS)
def test_what_rsync_splits_again_is_what_was_joined(words: list[str]) -> None:
    assert rsync_splits(quote_for_rsync(words)) == words


@given(WORDS)
def test_what_a_shell_splits_again_is_what_was_joined(words: list[str]) -> None:
    assert shlex.split(shlex.join(words)) == words


@given(st.text(max_size=20))
def test_a_name_is_copied_only_when_it_stays_inside_the_project(name: str) -> None:
    inside = (
        os.path.normpath(f"/p/{name}") == f"/p/{name}"
        and name not in ("", ".", "..")
        and "\0" not in name
    )
    try:
        accepted = relative_names([name]) == [name]
    except InputError:
        accepted = False
    assert accepted == inside


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "", ".", "a//b", "a/./b", "./a", "a/", "a\0b"]
)
def test_names_that_lead_out_or_are_spelt_in_two_ways_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="only plain names"):
        relative_names(["good", name])


def test_a_name_is_asked_for_once() -> None:
    assert relative_names(["b", "a", "b"]) == ["b", "a"]


def test_files_behind_a_linked_folder_are_copied_from_that_folder() -> None:
    files = ["data/set/a", "data/b", "c", "other/data/d", "x/y/z"]
    assert by_linked_folder(files, ["data", "x/y", "x"]) == {
        "data": ["set/a", "b"],
        "": ["c", "other/data/d"],
        "x/y": ["z"],
    }
    assert by_linked_folder(files, []) == {"": files}


SSH = ("ssh", "-p", "22")


def without_rsh(argv: Sequence[str]) -> list[str]:
    at = list(argv).index("-e")
    return [*argv[:at], *argv[at + 2 :]]


def test_a_push_compares_content_and_sends_what_our_links_point_to() -> None:
    argv = rsync_argv(Side("/head"), Side("/node/p q", "gpu1", SSH), pull=False)
    assert without_rsh(argv) == [
        "rsync",
        "--times",
        "--relative",
        "--secluded-args",
        "--from0",
        "--files-from=-",
        "--out-format=%b",
        "--timeout=120",
        "--checksum",
        "--copy-links",
        "/head/",
        "gpu1:/node/p q/",
    ]
    shell = rsync_splits(argv[argv.index("-e") + 1])
    assert shell[-4:] == ["3", *SSH]
    assert shell[2].endswith("rsh.py")


def test_a_pull_takes_neither_links_nor_devices() -> None:
    argv = rsync_argv(Side("/node", "::1", SSH), Side("/incoming"), pull=True)
    assert without_rsh(argv) == [
        "rsync",
        "--times",
        "--relative",
        "--secluded-args",
        "--from0",
        "--files-from=-",
        "--out-format=%b",
        "--timeout=120",
        "--no-links",
        "--no-devices",
        "--no-specials",
        "--ignore-missing-args",
        "--chmod=D700,F600",
        "[::1]:/node/",
        "/incoming/",
    ]


def test_of_what_a_copy_says_the_end_is_kept_however_much_it_is() -> None:
    program = (
        "import sys; names = sys.stdin.buffer.read(); print(len(names)); print('9' * 5000);"
        " sys.stdout.flush(); code = int(sys.argv[1])\nfor _ in range(32):\n   "
        " sys.stderr.write('x' * (1 << 20))\nsys.stderr.write('\\nthe last words\\n');"
        " sys.exit(code)"
    )
    files, argv = (
        [f"{number:06}" for number in range(100_000)],
        [
            sys.executable,
            "-S",
            "-c",
            program,
        ],
    )
    assert copy("n", [*argv, "0"], files, lambda process: None) == 100_000 * len("./000000\0")
    with pytest.raises(
        NodeError, match=r"n: rsync could not copy every file: x+; the last words$"
    ) as caught:
        copy("n", [*argv, "23"], files, lambda process: None)
    assert len(str(caught.value)) < 2_100
    assert len(_once([*argv, "0"], files, lambda process: None)[2]) == 64 << 10


def test_a_copy_that_ends_before_it_has_read_the_names_says_why() -> None:
    with pytest.raises(NodeError, match=r"n: rsync could not read or write a file .*: no room$"):
        copy(
            "n",
            ["sh", "-c", "exec <&-; echo no room >&2; exit 11"],
            ["x" * 1000] * 1000,
            lambda process: None,
        )


def test_no_copy_writes_under_the_final_name_or_without_a_host_key() -> None:
    for pull in (True, False):
        ends = (Side("/a"), Side("/b", "h", ("ssh", *ssh_options(Server(host="h")))))
        text = " ".join(rsync_argv(*(reversed(ends) if pull else ends), pull=pull))
        assert "partial" not in text
        assert "inplace" not in text
        assert "StrictHostKeyChecking=yes" in text
        assert "BatchMode=yes" in text


def test_a_copy_between_folders_of_this_machine_needs_no_ssh() -> None:
    assert "-e" not in rsync_argv(Side("/a"), Side("/b"), pull=False)


def test_the_keys_of_the_file_become_ssh_options_before_all_others() -> None:
    server = Server(host="gpu1", user="lab", port=2222, ssh_key="/k/my key", ssh_config="/c")
    options = ssh_options(server)
    assert options[:10] == [
        "-F",
        "/c",
        "-p",
        "2222",
        "-l",
        "lab",
        "-i",
        "/k/my key",
        "-o",
        "IdentitiesOnly=yes",
    ]
    assert own_options(options) == ["-F", "/c", "-p", "2222", "-l", "lab", "-i", "/k/my key"]
    assert own_options(ssh_options(Server(host="gpu1"))) == []


def test_the_command_to_copy_by_hand_is_the_documented_one() -> None:
    assert (
        manual_rsync_command(Server(host="gpu1"), "base_models")
        == "rsync -avz --checksum -- base_models/ 'gpu1:~/ml-customization/base_models/'"
    )
    by_hand = shlex.split(
        manual_rsync_command(
            Server(host="gpu1", user="lab", port=2222, ssh_key="/k/my key", path="/data/p q"),
            "base_models",
        )
    )
    assert by_hand[:4] == ["rsync", "-avz", "--checksum", "-e"]
    assert rsync_splits(by_hand[4]) == ["ssh", "-p", "2222", "-l", "lab", "-i", "/k/my key"]
    assert by_hand[5:] == ["--", "base_models/", "gpu1:/data/p q/base_models/"]


def settings(tmp_path: Path, text: str, **keys: object) -> object:
    path = tmp_path / "ssh config"
    path.write_text(text)
    return read_settings(Server(host="gpu1", ssh_config=str(path), **keys))


def test_openssh_own_rules_hold_and_the_file_overrides_them(tmp_path: Path) -> None:
    (tmp_path / "included").write_text("Host gpu1\n  HostName 192.0.2.7\n  Port 2200\n  User ann\n")
    text = (
        f'Include "{tmp_path}/included"\nMatch host 192.0.2.7 user lab\n  HostKeyAlias'
        " lab-node\nHost *\n  IdentityFile ~/.ssh/a_%r\n  IdentityFile /k/b\n"
    )
    plain = settings(tmp_path, text)
    assert (plain.hostname, plain.port, plain.user, plain.known_as) == (
        "192.0.2.7",
        2200,
        "ann",
        "[192.0.2.7]:2200",
    )
    assert [str(path) for path in plain.identities][1:] == ["/k/b"]
    assert plain.identities[0].name == "a_ann"
    ours = settings(tmp_path, text, user="lab", port=22)
    assert (ours.port, ours.user, ours.known_as) == (22, "lab", "lab-node")
    mine = tmp_path / "mine"
    mine.write_text("")
    only = settings(tmp_path, text, ssh_key=str(mine))
    assert only.identities[0] == mine
    assert only.identities_only


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("StrictHostKeyChecking no", None, False),
        ("StrictHostKeyChecking accept-new", None, True),
        ("StrictHostKeyChecking accept-new", "strict", False),
        ("StrictHostKeyChecking no", "accept-new", True),
    ],
)
def test_no_setting_switches_host_key_checking_off(
    tmp_path: Path, line: str, key: str | None, expected: bool
) -> None:
    found = settings(tmp_path, f"Host *\n  {line}\n", host_key=key)
    assert found.accept_new is expected
    assert "StrictHostKeyChecking=yes" in found.options
    assert not any("StrictHostKeyChecking=no" in option for option in found.options)


@pytest.mark.parametrize(
    ("jump", "argv"),
    [
        ("second", ["--", "second"]),
        ("ann@second", ["-l", "ann", "--", "second"]),
        ("second:2200", ["-p", "2200", "--", "second"]),
        ("me@[::1]:2222", ["-l", "me", "-p", "2222", "--", "::1"]),
        ("[fe80::1%eth0]", ["--", "fe80::1%eth0"]),
        ("LAB\\ann@second:22", ["-l", "LAB\\ann", "-p", "22", "--", "second"]),
        ("ann@lab.example@second", ["-l", "ann@lab.example", "--", "second"]),
    ],
)
def test_a_jumps_destination_is_given_to_ssh_in_parts(jump: str, argv: list[str]) -> None:
    assert openssh._jump(jump) == argv


def test_jumps_go_through_ssh_that_asks_nothing_and_rsync_takes_the_same_way(
    tmp_path: Path,
) -> None:
    found = settings(
        tmp_path, "Host gpu1\n  HostName 192.0.2.7\n  ProxyJump first,ann@second:2200\n"
    )
    assert found.proxy == (
        "ssh",
        "-F",
        f"{tmp_path}/ssh config",
        "-J",
        "first",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        "ControlPath=none",
        "-o",
        "ConnectTimeout=15",
        "-W",
        "[192.0.2.7]:22",
        "-l",
        "ann",
        "-p",
        "2200",
        "--",
        "second",
    )
    assert shlex.split(found.options[-1].removeprefix("ProxyCommand=")) == list(found.proxy)


def test_a_setting_that_openssh_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?i)gpu1: OpenSSH refuses the settings: .*NoSuchOption"):
        settings(tmp_path, "NoSuchOption yes\n")


def test_a_key_of_the_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="gpu1: no key file /k/mine"):
        settings(tmp_path, "", ssh_key="/k/mine")


def test_known_hosts_paths_with_spaces_are_found_where_they_exist(tmp_path: Path) -> None:
    known = tmp_path / "known hosts"
    known.write_text("")
    found = settings(
        tmp_path,
        f'Host *\n  UserKnownHostsFile "{known}" /no/such\n  GlobalKnownHostsFile /dev/null\n',
    )
    assert found.user_known_hosts == (known, Path("/no/such"))
    assert found.global_known_hosts == ()


# A local node: the same interface without SSH.


def test_a_local_node_works_in_the_project_folder_and_copies_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to("a")
    with connect(Server(host="localhost"), tmp_path) as node:
        assert node.shared
        assert node.run(["pwd"]).text == str(tmp_path)
        assert node.push(["a"]).bytes == 0
        taken = node.pull(["a", "b", "link"], tmp_path / "incoming")
        assert (taken.root, taken.files, taken.missing, taken.bytes) == (
            tmp_path,
            ("a",),
            ("b", "link"),
            0,
        )
        assert not (tmp_path / "incoming").exists()


def test_a_local_node_with_a_folder_of_its_own_gets_copies(tmp_path: Path) -> None:
    head = tmp_path / "head"
    head.mkdir()
    (head / "a").write_text("x")
    with connect(Server(host="localhost", path=str(tmp_path / "node")), head) as node:
        assert not node.shared
        assert node.push(["a"]).bytes > 0
        assert (tmp_path / "node" / "a").read_text() == "x"
        taken = node.pull(["a", "b"], head / "incoming")
        assert (taken.files, taken.missing) == (("a",), ("b",))
        assert (head / "incoming" / "a").read_text() == "x"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -SEGV $$", 139),
        ("kill -TERM $$", 143),
    ],
)
def test_exit_codes_are_those_of_a_shell(tmp_path: Path, script: str, code: int) -> None:
    with connect(Server(host="localhost"), tmp_path) as node:
        assert node.run(["sh", "-c", script]).exit_code == code


def test_input_larger_than_a_pipe_goes_through_and_output_beyond_the_limit_is_refused(
    tmp_path: Path,
) -> None:
    data = os.urandom(1 << 20)
    with connect(Server(host="localhost"), tmp_path) as node:
        assert node.run(["cat"], input=data).stdout == data
        assert node.run(["head", "-c", "3"], input=data).stdout == data[:3]
        with pytest.raises(NodeError, match="printed more than 1000 bytes"):
            node.run(["cat"], input=data, limit=1000)


def test_a_command_that_outlives_its_time_is_killed_with_its_children(tmp_path: Path) -> None:
    with connect(Server(host="localhost"), tmp_path) as node:
        result = node.run(["sh", "-c", "sleep 1000 & echo $!; wait"], timeout=0.5)
        assert result.exit_code is None
        assert "no end within the time allowed" in result.last_words
        child = Path(f"/proc/{int(result.stdout)}/stat")

        def ended() -> bool:
            try:
                return child.read_text().rpartition(")")[2].split()[0] in "ZX"
            except OSError:
                return True

        wait_until(ended, what="the end of the child")


def test_a_long_lived_process_is_spoken_with_line_by_line(tmp_path: Path) -> None:
    with connect(Server(host="localhost"), tmp_path) as node:
        process = node.start(
            ["sh", "-c", "while read line; do echo got $line; echo aside >&2; done; exit 3"]
        )
        with pytest.raises(TimeoutError):
            process.read_line(0.01)
        process.write(b"one\ntwo\n")
        assert [process.read_line(10), process.read_line(10)] == [b"got one\n", b"got two\n"]
        with pytest.raises(TimeoutError):
            process.wait(0.01)
        process.close_input()
        assert process.read_line(10) == b""
        assert process.wait(10) == 3
        assert process.stderr_tail == b"aside\naside\n"
        with pytest.raises(NodeError):
            process.write(b"more\n")
        process.close()


@pytest.mark.parametrize("argv", ["ls", [], [""], ["-c"], ["a", "b\0c"]])
def test_what_is_no_command_is_refused(tmp_path: Path, argv: list[str]) -> None:
    with connect(Server(host="localhost"), tmp_path) as node, pytest.raises(InputError):
        node.run(argv)


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        connect(Server(host="localhost"), tmp_path) as node,
        pytest.raises(NodeError, match="localhost: cannot start no-such-command"),
    ):
        node.run(["no-such-command"])


def test_a_file_that_the_head_lacks_is_named_before_anything_is_copied(tmp_path: Path) -> None:
    with (
        connect(Server(host="localhost", path=str(tmp_path / "node")), tmp_path) as node,
        pytest.raises(InputError, match="cannot copy b to localhost"),
    ):
        node.push(["b"])


def test_files_are_taken_only_into_a_fresh_folder(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "old").write_text("x")
    with (
        connect(Server(host="localhost", path=str(tmp_path / "node")), tmp_path) as node,
        pytest.raises(InputError, match="not empty"),
    ):
        node.pull(["a"], tmp_path / "incoming")
    assert (tmp_path / "incoming" / "old").read_text() == "x"


def test_a_node_that_only_says_what_it_was_told_does_not_share_our_folder(tmp_path: Path) -> None:
    ssh = Ssh.__new__(Ssh)
    ssh.project = tmp_path
    ssh.run = lambda argv: Result(0, argv[-1].encode(), b"")
    assert not ssh._sees_our_folder()
    ssh.run = lambda argv: Result(0, (tmp_path / argv[-1]).read_bytes(), b"")
    assert ssh._sees_our_folder()
    assert not list(tmp_path.iterdir())


def test_a_link_that_is_opened_while_the_connection_closes_is_closed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[str] = []
    link = SimpleNamespace(transport=None, close=lambda: closed.append("link"))

    def closing_meanwhile(settings: object) -> object:
        ssh.close()
        return link

    monkeypatch.setattr(connection_module, "open_link", closing_meanwhile)
    monkeypatch.setattr(Ssh, "refresh", lambda self: None)
    monkeypatch.setattr(Ssh, "_sees_our_folder", lambda self: False)
    ssh = Ssh(Server(host="gpu1", ssh_config="none"), Path.cwd())
    with pytest.raises(ConnectError, match="the connection was closed"):
        ssh.run(["true"])
    assert closed == ["link"]
