"""The dashboard: pages in a browser that show and steer what the management server does.

It is a client of the server's HTTP interface and knows nothing else: no model, no store, no files of runs. Read `client.py` (what is asked),
`feed.py` (what comes by itself), `layout.py` (what all pages share), then any page in `pages/`.
"""

from __future__ import annotations

from bit_transformer.extras import require

for _module in ("nicegui", "httpx"):
    require(_module, extra="dashboard", purpose="the dashboard")
