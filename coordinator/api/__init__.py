"""The coordinator's gRPC API: `public` for everybody, `admin` for the organiser, `server` with TLS and limits."""
