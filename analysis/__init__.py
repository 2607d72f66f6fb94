"""From stored rows to statistics, figures, tables and expected-versus-obtained; knows only the stored schema."""
