"""From a request to text: prompt, generation, detokenization and log probabilities."""
