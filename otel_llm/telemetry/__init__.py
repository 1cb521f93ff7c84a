"""Timeline to spans, histograms and counters. Only importer of the OpenTelemetry API."""
