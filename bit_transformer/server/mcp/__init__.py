"""The Model Context Protocol: tools, resources and prompts for agents, over HTTP (`/mcp`) and standard input and output."""
