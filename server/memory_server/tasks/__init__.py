"""Submitting, routing, claiming and ending tasks."""
