"""How much the model's answers change when single weights are stored in other number formats."""
