"""From received telemetry back to requests, and from requests to tables and charts."""
