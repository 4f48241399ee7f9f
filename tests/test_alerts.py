"Alerts with real receivers: a webhook, a mail server and a program, once for each event, and after a failure again."
import email
import email.policy
import json
import socketserver
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import sqlalchemy as sa

from deploy_assist.alerts import AlertError, Message, outbox, read_target, send
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
    "A webhook: `.got` has what came, `.answers` what it says next."
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.got.append(body | {"key": self.headers["Idempotency-Key"]})
            self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
            self.end_headers()
        def log_message(self, *_): pass
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.answers, server.url = [], [], f"http://127.0.0.1:{server.server_port}/services/hidden"
    with running(server): yield server


@pytest.fixture
def post_office():
    "A mail server that speaks enough SMTP: `.got` has the letters, `.said` the dialogue, `.refused` whom it does not know."
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            say, letter = lambda text: self.wfile.write(text.encode() + b"\r\n"), None
            say("220 ready")
            while line := self.rfile.readline().decode().strip():
                self.server.said.append(line)
                verb = line.split()[0].upper()
                if verb == "EHLO": say("250-here\r\n250 AUTH PLAIN")
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
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.got, server.said, server.refused = [], [], ()
    server.url = f"smtp://bot:hunter2@127.0.0.1:{server.server_address[1]}/?to=a@example.org,b@example.org&from=c@example.org"
    with running(server): yield server


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


def test_a_sender_that_was_killed_is_replaced(hook):
    s = schedule("m", cron="0 6 * * *", command=says("watch", 10), alerts=hook.url)
    hook.answers = [503]
    run_due(s.next)
    held = lambda until: sa.update(outbox).values(lease_until=until)
    with _engine().begin() as c: c.execute(held(datetime.now(UTC) + timedelta(minutes=1)))
    run_due(s.next + timedelta(minutes=5))
    assert len(hook.got) == 1
    with _engine().begin() as c: c.execute(held(datetime.now(UTC) - timedelta(minutes=1)))
    run_due(s.next + timedelta(minutes=5))
    assert [g["key"] for g in hook.got] == [hook.got[0]["id"]] * 2


def test_secrets_are_shown_nowhere(hook, monkeypatch):
    monkeypatch.setenv("HOOK", hook.url)
    s = schedule("m", cron="0 6 * * *", command=says("watch", 10), alerts=["${HOOK}", "smtp://u:hunter2@127.0.0.1:1/?to=a@b"])
    run_due(s.next)
    assert len(hook.got) == 1
    with _engine().begin() as c: stored = str(c.execute(sa.select(outbox)).fetchall())
    for text in (repr(s), str(s.to_dict()), repr(list_schedules()), runs().to_string(), stored):
        assert "hunter2" not in text and "hidden" not in text
    monkeypatch.delenv("HOOK")
    with pytest.raises(AlertError, match="no variable HOOK"): send("${HOOK}", message)
    assert "hunter2" not in read_target("smtp://u:hunter2@h/?to=a@b").shown
