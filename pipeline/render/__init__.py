"""Views: overlay, blending, colors, HUD and annotations. Sinks, page and flow call it."""
