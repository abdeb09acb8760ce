"""What every process needs: configuration, logging, health, metrics, fault codes, signals."""
