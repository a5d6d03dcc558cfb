"""Which test files speak of a module: the quickest to notice a fault first."""

SUITES = {
    "masks": ("test_masks", "test_rules", "test_bad_inputs"),
    "rules": ("test_rules", "test_mask_rules", "test_masks"),
    "checks": ("test_checks",),
    "tables": ("test_tables",),
    "files": ("test_files",),
    "family": ("test_parts", "test_family", "test_names"),
    "study/equivalence": ("test_equivalence", "test_statistics"),
    "study/comparisons": ("test_study_roles", "test_study_answers"),
    "study/statistics": ("test_statistics",),
    "study/tradeoffs": ("test_statistics",),
    "study/power": ("test_statistics",),
    "audit/verdicts": ("test_claims",),
    "profilers/formulas": ("test_formulas",),
    "models/attention": ("test_models",),
    "models/columns": ("test_kernels",),
    "models/layers": ("test_models",),
    "plots/base": ("test_plots_axes", "test_plots_colours", "test_plots_numbers"),
    "plots/parameters": ("test_plots_axes", "test_plots_numbers"),
    "plots/compute": ("test_plots_axes", "test_plots_numbers"),
    "plots/studies": ("test_plots_axes", "test_plots_numbers", "test_study_plots"),
}
