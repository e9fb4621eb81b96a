"""An example of a service: text messages, handed to a provider by HTTP. CONTRIBUTING.md says how to add it."""
