"""What cannot be reached: the client is told why, in its own language and in time."""

from checks import check
from clients import FORWARD, SOCKS, TUNNEL, curl
from processes import free_port

# The generator of secp256k1: a valid public key that no exit here has.
NOBODY = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"


def refusal(world, url, reply, status, code, within, address=None):
    """One failure in the three ways a client meets it: SOCKS reply, HTTP status, status of CONNECT."""
    address = address or world.proxy.address
    seen = []
    outcome = curl(SOCKS, address, url, limit=within + 5)
    assert outcome.code == 97, f"SOCKS: {outcome}"
    assert outcome.socks_reply == reply, f"SOCKS reply {outcome.socks_reply}, not {reply}: {outcome}"
    seen.append(outcome.seconds)
    browser = ["-H", "Accept: text/html,*/*;q=0.8", "-o", world.path("refusal.html")]
    outcome = curl(FORWARD, address, url, "-D", "-", *browser, limit=within + 5)
    assert (outcome.status, outcome.nws_error) == (status, code), f"GET: {outcome.status} {outcome.nws_error} {outcome}"
    with open(world.path("refusal.html")) as page:
        assert "<!doctype html>" in page.read().lower(), "no page for a browser"
    seen.append(outcome.seconds)
    outcome = curl(TUNNEL, address, url, "-D", "-", limit=within + 5)
    assert outcome.code == 56, f"CONNECT: {outcome}"
    assert (outcome.status, outcome.nws_error) == (status, code), f"CONNECT: {outcome.status} {outcome.nws_error}"
    seen.append(outcome.seconds)
    assert max(seen) <= within, f"took {max(seen):.1f} s, not {within} s at most"
    return f"reply {reply:02}, {status} {code}, {max(seen):.2f} s"


@check(60)
def no_such_service(world):
    """no such service: denied"""
    return refusal(world, f"{world.name}:82/", 2, 403, "denied", 5)


@check(60)
def service_down(world):
    """the service is not running: refused"""
    return refusal(world, f"{world.name}:81/", 5, 502, "refused", 5)


@check(60)
def bad_names(world):
    """a name that is no name: host-unreachable"""
    label = world.name.split(".")[1]
    for name in ("nonsense.nostr", f"{label[:-1]}.nostr", f"xx.{label}.nostr"):
        seen = refusal(world, f"{name}/", 4, 502, "host-unreachable", 5)
    return seen


@check(60)
def clear_net(world):
    """names and addresses of the clear net: denied"""
    for name in ("example.com", "127.0.0.1", "nostr"):
        seen = refusal(world, f"{name}/", 2, 403, "denied", 5)
    return seen


@check(90)
def exit_not_running(world):
    """the exit is not running: timeout (open_timeout 6 s)"""
    name = world.encode_name(NOBODY, world.relay_url)
    address = world.quick_proxy.address
    # An exit that was never met may be one of before reliable streams, which answers nothing until it is spoken to: the
    # first request goes out, and its failure comes in time. From then on the exit counts as absent.
    outcome = curl(FORWARD, address, f"{name}/", "-D", "-", limit=13)
    assert (outcome.status, outcome.nws_error) == (504, "timeout"), f"first: {outcome.status} {outcome.nws_error}"
    return f"first {outcome.seconds:.1f} s, then " + refusal(world, f"{name}/", 6, 504, "timeout", 8, address)


@check(90)
def relay_not_running(world):
    """the relay is not running: network-unreachable (open_timeout 6 s)"""
    name = world.encode_name(NOBODY, f"ws://127.0.0.1:{free_port()}")
    return refusal(world, f"{name}/", 3, 502, "network-unreachable", 8, world.quick_proxy.address)
