"""Which servers, and how they are spoken to; nothing is sent."""

import pytest

from pipeline.engines import open_engine
from pipeline.engines.server_options import TOKEN_VARIABLE, ServerOptions
from pipeline.errors import OptionError


@pytest.mark.parametrize(
    ("text", "addresses", "is_tls"),
    [
        ("grpc://127.0.0.1:8001", ("127.0.0.1:8001",), False),
        ("grpc://localhost", ("localhost:8001",), False),
        ("grpc://[::1]:9", ("[::1]:9",), False),
        ("GRPC://LocalHost:9", ("localhost:9",), False),
        ("grpcs://a:1,b:2", ("a:1", "b:2"), True),
        ("grpcs://a:1, grpcs://b", ("a:1", "b:8001"), True),
        ("grpc://127.0.0.1:1,127.0.0.1:2,127.0.0.1:1", ("127.0.0.1:1", "127.0.0.1:2"), False),
    ],
)
def test_addresses(text, addresses, is_tls):
    options = ServerOptions(text)
    assert (options.addresses, options.is_tls) == (addresses, is_tls)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "a:1",
            "http://a:1",
            "grpc://",
            "grpc://a:x",
            "grpc://a:0",
            "grpc://a:99999",
            "grpc://a/b",
            "grpc://a:1,",
            "grpc://a?x=1",
        ),
        *("grpcs://a,grpc://b", "grpcs://me:secret@a:1", "http://me:secret@a:1", "me:secret@a:1"),
        *("grpc://[::1", "grpc://[zz]:1", "grpc://::1:1", "grpc://a b:1", "grpc://a\nb:1", "grpc://a:1:2"),
    ],
)
def test_other_addresses_are_refused_and_no_password_is_shown(text):
    with pytest.raises(
        OptionError, match=r"^--server: expected grpc://HOST:PORT, more of them after commas, got "
    ) as caught:
        ServerOptions(text)
    assert "secret" not in str(caught.value)


def test_plain_text_is_for_loopback_alone(tmp_path):
    for text in ("grpc://10.0.0.2:8001", "grpc://127.0.0.1,gpu.local", "grpc://127.evil.example"):
        with pytest.raises(
            OptionError,
            match=r"^--server: expected TLS for .*, which is another machine, got plain text: give --server-ca",
        ):
            ServerOptions(text)
        assert not ServerOptions(text, insecure=True).is_tls
    authority = tmp_path / "ca.pem"
    authority.write_text("x")
    assert ServerOptions("grpc://10.0.0.2", ca=str(authority)).is_tls


def test_shared_memory_is_for_this_machine_alone():
    with pytest.raises(
        OptionError, match=r"^--server-memory shared: expected servers on this machine, .*got a:8001: take raw$"
    ):
        ServerOptions("grpcs://a", "shared")
    with pytest.raises(OptionError, match=r"^--server-memory: expected raw or shared, got 'cuda'$"):
        ServerOptions("grpcs://a", "cuda")


def test_a_certificate_has_its_key(tmp_path):
    file = tmp_path / "x.pem"
    file.write_text("x")
    with pytest.raises(OptionError, match=r"^--server-cert: expected --server-key beside it"):
        ServerOptions("grpcs://a", cert=str(file))
    with pytest.raises(OptionError, match=r"^--server-ca: expected a file in PEM form, got .*none.pem, which is none$"):
        ServerOptions("grpcs://a", ca=str(tmp_path / "none.pem")).check_files()


def test_a_token_comes_from_a_file_or_the_environment_and_is_never_shown(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("abc123\n")
    of_file = ServerOptions("grpcs://a", token_file=str(file))
    assert ServerOptions("grpcs://a").read_token() is None
    monkeypatch.setenv(TOKEN_VARIABLE, "other")
    assert of_file.read_token() == "abc123"
    assert ServerOptions("grpcs://a").read_token() == "other"
    assert ServerOptions("grpcs://a", token="abc123").read_token() == "abc123"
    assert "abc123" not in repr(ServerOptions("grpcs://a", token="abc123"))
    file.write_text("\n")
    with pytest.raises(OptionError, match=r"^--server-token-file: expected one line with a token, got none in it$"):
        of_file.read_token()
    file.write_text("abc\ndef")
    with pytest.raises(OptionError, match=r"expected one line with a token, got more in it$") as caught:
        of_file.read_token()
    assert "abc" not in str(caught.value)
    file.unlink()
    with pytest.raises(
        OptionError,
        match=r"^--server-token-file: expected a file with a token in ASCII, cannot read it \(No such file or directory\)$",
    ):
        of_file.read_token()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match=r"cannot read it \(it has other bytes\)$"):
        of_file.read_token()


def test_servers_and_the_backend_belong_together(red_bundle):
    with pytest.raises(
        OptionError, match=r"^--backend triton: expected --server grpc://HOST:PORT beside it, got none$"
    ):
        open_engine(red_bundle, "triton")
    for backend in ("auto", "onnxruntime"):
        with pytest.raises(OptionError, match=rf"^--server: expected --backend triton beside it, got {backend}$"):
            open_engine(red_bundle, backend, servers=ServerOptions("grpc://127.0.0.1:1"))


def test_on_the_command_line(refused, tmp_path):
    assert "--server-ca: expected --server grpc://HOST:PORT beside it, got none" in refused(
        "--source", "x.png", "--server-ca", "x"
    )
    assert "--insecure: expected --server grpc://HOST:PORT beside it" in refused("--source", "x.png", "--insecure")
    said = refused("--source", "test://?frames=1", "--output", "null", "--server", "grpc://127.0.0.1:1")
    assert said == "error: --server: expected --backend triton beside it, got auto"
    for option in (("--server-memory", "raw"), ("--server-wait", "60")):
        said = refused("--source", "x.png", *option)
        assert said == f"error: {option[0]}: expected --server grpc://HOST:PORT beside it, got none"


@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_servers_are_not_forgotten_where_the_engine_is_opened_early(refused, red_bundle, backend):
    options = ("--model", str(red_bundle.folder), "--backend", backend, "--server", "grpc://127.0.0.1:1")
    said = refused("--source", "test://?frames=1", "--output", "null", *options)
    assert said == f"error: --server: expected --backend triton beside it, got {backend}"


def test_a_server_that_is_not_there_ends_the_command_with_one_line(refused):
    pytest.importorskip("tritonclient.grpc")
    options = ("--backend", "triton", "--server", "grpc://127.0.0.1:1", "--server-wait", "0.2")
    said = refused("--source", "test://?frames=1", "--output", "null", *options)
    assert said.startswith("error: grpc://127.0.0.1:1: ")
    assert said.endswith(
        ": expected masks within 0.2 s (--server-wait), got none: start the server, or name others, by their ports for gRPC"
    )
