"""The page: live pictures, controls and figures for browsers, and metrics for a monitoring system (``--serve``)."""
