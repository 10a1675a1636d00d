"""What the dashboards of the tests show, and what opens them."""

from __future__ import annotations

from tests.browser.functions import HELLO, starting

TOKEN = "the token of the tests"
MARKUP = "<img src=x onerror=alert(1)>"
FUNCTIONS = {name: starting(0.3, HELLO) for name in ("elsewhere", "by-button", "by-form", "plain")}
FUNCTIONS["posts"] = starting(0.3, HELLO.replace("hello", "echo"))
FUNCTIONS["stream"] = starting(
    0.0,
    "import http.server, socketserver\n"
    "class Slow(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers(); self.wfile.write(b'begun'); self.wfile.flush()\n"
    "        if self.path != '/': time.sleep(60)\n"
    "socketserver.ThreadingTCPServer(('127.0.0.1', int(sys.argv[1])), Slow).serve_forever()",
)
FAILURE = f"the process ended with exit code 3: {MARKUP}"
