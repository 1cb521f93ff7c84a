"""Providers where the service has none. Only importer of the OpenTelemetry SDK."""
