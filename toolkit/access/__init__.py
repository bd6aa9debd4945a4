"""Who may do what at the broker: accounts and their grants, certificates, Mosquitto's set-up, and its judgement."""
