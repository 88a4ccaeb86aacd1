"""Vision-language models, such as Cosmos-Reason, that look at videos and write about them."""
