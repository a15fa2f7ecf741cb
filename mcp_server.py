"""The management server: python mcp_server.py [--host H] [--port P]. See `bit_transformer/server/`."""

from bit_transformer.server import main

if __name__ == "__main__":
    main()
