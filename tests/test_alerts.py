"Alerts with real receivers: a webhook, a mail server and a program, once for each event, and after a failure again."
import email
import email.policy
import json
import multiprocessing
import socketserver
import ssl
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import sqlalchemy as sa
from waiting import until

from deploy_assist import alerts
from deploy_assist.access import self_signed
from deploy_assist.alerts import AlertError, Message, outbox, read_target, retrain_message, send
from deploy_assist.schedule import _engine, list_schedules, run_due, runs, schedule

message = Message("s:1:watch", "größe: watch", "größe: watch\n<b> & more", {"model": "größe", "verdict": "watch"})


@contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try: yield server
    finally: server.shutdown(); server.server_close(); thread.join()


@pytest.fixture
def hook():
    "A webhook: `.got` has what came, `.answers` what it says next; it says nothing at all while `.free` is not set."
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.got.append(body | {"key": self.headers["Idempotency-Key"]})
            self.server.free.wait(30)
            with suppress(BrokenPipeError):
                self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
                self.send_header("Location", self.server.url)
                self.end_headers()
        def log_message(self, *_): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.answers, server.free = [], [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/services/hidden"
    server.free.set()
    with running(server): yield server


@pytest.fixture
def post_office():
    """A mail server that speaks enough SMTP: `.got` has the letters, `.said` the dialogue, `.refused` whom it does not know.

    With `.tls`, a context, it offers STARTTLS."""
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            say, letter = lambda text: self.wfile.write(text.encode() + b"\r\n"), None
            say("220 ready")
            while line := self.rfile.readline().decode().strip():
                self.server.said.append(line)
                verb = line.split()[0].upper()
                if verb == "EHLO": say(f"250-here\r\n{'250-STARTTLS' if self.server.tls else '250-8BITMIME'}\r\n250 AUTH PLAIN")
                elif verb == "STARTTLS":
                    say("220 go on")
                    self.request = self.server.tls.wrap_socket(self.request, server_side=True)
                    self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)
                elif verb == "AUTH": say("235 welcome")
                elif verb == "RCPT" and any(r in line for r in self.server.refused): say("550 unknown")
                elif verb == "DATA":
                    say("354 go on")
                    letter = b""
                    while (part := self.rfile.readline()) != b".\r\n": letter += part
                    self.server.got.append(email.message_from_bytes(letter, policy=email.policy.default))
                    say("250 taken")
                elif verb == "QUIT": say("221 bye"); return
                else: say("250 fine")
    class Office(socketserver.ThreadingTCPServer):
        daemon_threads = True
        def handle_error(self, *_): pass  # a client that does not trust us hangs up
    server = Office(("127.0.0.1", 0), Handler)
    server.got, server.said, server.refused, server.tls = [], [], (), None
    server.url = f"smtp://bot:hunter2@127.0.0.1:{server.server_address[1]}/?to=a@example.org,b@example.org&from=c@example.org"
    with running(server): yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    "A self-signed certificate for 127.0.0.1: its file, and a server's context that shows it."
    folder = tmp_path_factory.mktemp("tls")
    file, key = self_signed(folder, ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    return file, context


def says(action, code):
    return ["sh", "-c", f'echo \'{{"action": "{action}", "advice": "look"}}\' > "$0/v.json"; exit {code}', "{out}"]


def test_slack_gets_its_json(hook):
    send(hook.url, message)
    assert hook.got == [{"text": "größe: watch\n&lt;b&gt; &amp; more", "id": "s:1:watch", "subject": "größe: watch",
                         "model": "größe", "verdict": "watch", "key": "s:1:watch"}]


def test_a_letter_arrives_with_the_page(post_office, tmp_path):
    page = tmp_path / "r.html"
    page.write_text("<h1>größe</h1>")
    send(post_office.url, Message(message.id, message.subject, message.text, {"report": str(page)}))
    letter, = post_office.got
    assert letter["Message-ID"] == "<s.1.watch@deploy-assist>" and letter["Subject"] == "[deploy_assist] größe: watch"
    assert letter.get_body().get_content().splitlines()[0] == "größe: watch"
    assert [a.get_filename() for a in letter.iter_attachments()] == ["r.html"]


def test_some_addressees_are_refused_and_none_is_told_twice(post_office):
    post_office.refused = ("b@example.org",)
    s = schedule("m", cron="0 6 * * *", command=says("watch", 10), alerts=post_office.url)
    for hours in range(3): run_due(s.next + timedelta(hours=hours))
    assert len(post_office.got) == 1
    with _engine().begin() as c: row = c.execute(sa.select(outbox)).one()
    assert row.state == "sent" and "b@example.org" in row.error


def test_a_mail_server_that_refuses_is_asked_again(post_office):
    "It knows neither addressee; later it knows both."
    post_office.refused = ("example.org>",)
    s = schedule("m", cron="0 6 * * *", command=says("watch", 10), alerts=post_office.url)
    run_due(s.next)
    row, = outbox_rows()
    assert (row.state, row.attempt, post_office.got) == ("queued", 1, []) and "550" in row.error and "hunter2" not in row.error
    post_office.refused = ()
    run_due(s.next + timedelta(minutes=2))
    assert outbox_rows()[0].state == "sent" and len(post_office.got) == 1


def test_a_password_does_not_go_out_in_the_clear(post_office, monkeypatch):
    monkeypatch.setattr("deploy_assist.alerts._is_loopback", lambda host: False)
    with pytest.raises(AlertError, match="offers no TLS"): send(post_office.url, message)
    assert not any("AUTH" in line for line in post_office.said)


def test_a_change_is_told_once_to_each_and_a_failing_target_fails_no_run(hook, post_office, tmp_path):
    targets = [hook.url, post_office.url, f"command:sh -c 'cat >> {tmp_path}/told; echo >> {tmp_path}/told'", "command:false"]
    def days(n, action, code):
        s = schedule("m", cron="0 6 * * *", command=says(action, code), alerts=targets)
        return run_due(s.next + timedelta(days=n))
    assert days(0, "keep", 0)[0]["state"] == "done" and not hook.got  # nothing changed
    hook.answers = [500]
    for _ in range(2): assert all(r["state"] == "done" for r in days(1, "watch", 10))  # the webhook failed
    days(2, "watch", 10)                                                               # and is tried again
    days(3, "keep", 0)
    assert [g["id"].split(":")[-1] for g in hook.got] == ["watch", "watch", "keep"]
    assert len(post_office.got) == 2 and "was: watch" in post_office.got[1].get_body().get_content()
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [t["facts"]["verdict"] for t in told] == ["watch", "keep"] and "What to do: look" in told[0]["text"]


def test_a_missing_report_is_told_once_and_so_is_its_return(hook):
    s = schedule("m", cron="0 6 * * *", command=["sh", "-c", "echo no such table >&2; exit 1"], alerts=hook.url)
    for minutes in (0, 2, 10, 61, 70, 80): run_due(s.next + timedelta(minutes=minutes))
    assert [g["event"] for g in hook.got] == ["missing"] and "no such table" in hook.got[0]["text"]
    schedule("m", cron="0 6 * * *", command=says("keep", 0), alerts=hook.url)
    run_due(s.next + timedelta(days=1))
    assert [g["event"] for g in hook.got] == ["missing", "verdict"] and hook.got[1]["was"] == "missing"


def outbox_rows():
    with _engine().begin() as c: return c.execute(sa.select(outbox).order_by(outbox.c.created, outbox.c.event)).fetchall()


def test_a_sender_that_was_killed_tells_nobody_twice(hook):
    "kill -9 after the message left and before that was written down: it is not sent again, and the next message says so."
    s = schedule("m", cron="0 6 * * *", command=says("watch", 10), alerts=hook.url)
    hook.free.clear()
    sender = multiprocessing.get_context("fork").Process(target=run_due, args=(s.next,))
    sender.start()
    try: until(lambda: hook.got, "the message leaves")
    finally: sender.kill(); sender.join(); hook.free.set()
    run_due(s.next + timedelta(minutes=5))
    assert [r.state for r in outbox_rows()] == ["sending"], "for all that we know, it is still at it"
    with _engine().begin() as c: c.execute(sa.update(outbox).values(lease_until=datetime.now(UTC) - timedelta(minutes=1)))
    for minutes in (10, 20): run_due(s.next + timedelta(minutes=minutes))
    row, = outbox_rows()
    assert row.state == "unsure" and "nobody knows" in row.error and len(hook.got) == 1
    for days, (action, code) in enumerate((("keep", 0), ("watch", 10)), 1):
        schedule("m", cron="0 6 * * *", command=says(action, code), alerts=hook.url)
        run_due(s.next + timedelta(days=days))
    assert ["Perhaps not delivered: m: watch" in g["text"] for g in hook.got] == [False, True, False], "said once"


def test_who_does_not_answer_is_asked_again(hook, monkeypatch, tmp_path):
    "A webhook and a program that hang, a webhook that leads elsewhere, a program that leaves another one behind."
    monkeypatch.setattr(alerts, "_TIMEOUT_S", 0.3)
    hook.free.clear()
    targets = [hook.url, "command:sleep 60"]
    s = schedule("m", cron="0 6 * * *", command=says("watch", 10), alerts=targets)
    assert run_due(s.next)[0]["state"] == "done"
    assert [r.state for r in outbox_rows()] == ["queued"] * 2
    assert all("timed out" in r.error or "longer than 0.6 s" in r.error for r in outbox_rows())
    hook.free.set()
    run_due(s.next + timedelta(minutes=2))
    assert [r.state for r in outbox_rows() if r.shown.startswith("http")] == ["sent"]
    assert [g["key"] for g in hook.got] == [hook.got[0]["id"]] * 2, "the same id: a receiver can tell"
    hook.answers = [307, 301]
    for code in (307, 301):
        with pytest.raises(AlertError, match=f"answered {code}"): send(hook.url, message)
    assert len(hook.got) == 4, "no redirect is followed"
    send(f"command:sh -c 'sleep 2 & cat > {tmp_path}/got'", message)  # its stderr stays open: no reason to wait
    assert json.loads((tmp_path / "got").read_text())["id"] == message.id


@pytest.mark.parametrize("is_trusted", [True, False])
@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_letters_go_by_tls_to_whom_we_trust(post_office, certificate, monkeypatch, scheme, is_trusted):
    file, context = certificate
    if scheme == "smtp": post_office.tls = context
    else: post_office.socket = context.wrap_socket(post_office.socket, server_side=True)
    if is_trusted: monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setattr(alerts, "_is_loopback", lambda host: False)
    url = post_office.url.replace("smtp:", f"{scheme}:")
    if is_trusted:
        send(url, message)
        assert len(post_office.got) == 1
        plain = post_office.said[:post_office.said.index("STARTTLS")] if scheme == "smtp" else []
        assert [line.split()[0] for line in plain] == ["ehlo"][:len(plain)] and any("AUTH" in line for line in post_office.said)
    else:
        with pytest.raises(AlertError, match="CERTIFICATE_VERIFY_FAILED|certificate verify failed"): send(url, message)
        assert not post_office.got and not any("AUTH" in line for line in post_office.said)


def test_what_a_retrain_came_to_says_what_to_do():
    window = (datetime(2026, 11, 16, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC))
    made = dict(challenger="4", summary="größe: ready", conditions=[dict(name="better", is_met=False, evidence="+0.1")])
    for decision, said in dict(promoted="deploy-assist rollback 'größe'", ready="deploy-assist promote 'größe' 4 --reason",
                               rejected="the champion stays", failed="deploy-assist retrain 'größe'").items():
        told = retrain_message("e", "größe", decision, window, made)
        assert said in told.text and "- better: no, +0.1" in told.text and told.facts["decision"] == decision
    quoted = retrain_message("e", "it's; rm", "failed", window, error="no labels").text
    assert "deploy-assist retrain 'it'\"'\"'s; rm'" in quoted and "no labels" in quoted


def test_secrets_are_shown_nowhere(hook, monkeypatch):
    monkeypatch.setenv("HOOK", hook.url)
    s = schedule("m", cron="0 6 * * *", command=says("watch", 10), alerts=["${HOOK}", "smtp://u:hunter2@127.0.0.1:1/?to=a@b"])
    run_due(s.next)
    assert len(hook.got) == 1
    with _engine().begin() as c: stored = str(c.execute(sa.select(outbox)).fetchall())
    for text in (repr(s), str(s.to_dict()), repr(list_schedules()), runs().to_string(), stored):
        assert "hunter2" not in text and "hidden" not in text
    schedule("m", cron="0 6 * * *", command=says("keep", 0), alerts=["${HOOK}"])
    monkeypatch.setenv("HOOK", "no-address")  # what it holds then is looked at when something is sent
    assert run_due(s.next + timedelta(days=1))[0]["state"] == "done" and list_schedules()[0].alerts == ("${HOOK}",)
    assert "'${HOOK}' stands for, expected a webhook" in outbox_rows()[-1].error and "no-address" not in outbox_rows()[-1].error
    monkeypatch.delenv("HOOK")
    with pytest.raises(AlertError, match="no variable HOOK"): send("${HOOK}", message)
    assert "hunter2" not in read_target("smtp://u:hunter2@h/?to=a@b").shown
