"""The OpenAI protocol: bodies of requests, their fields and bounds, answers and errors."""
