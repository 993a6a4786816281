"""Views: overlay, blending, colours, HUD and annotations. Sinks, page and flow call it."""
