"""mimicvideo: video-to-action policies on pretrained video models."""
