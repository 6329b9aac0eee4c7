//! The README shows the example as it is compiled.

#[test]
fn the_readme_shows_the_example() {
    let readme = include_str!("../../README.md");
    let example = include_str!("../examples/first_view.rs");
    let body = example.split("// README begins\n").nth(1);
    let body = body.and_then(|rest| rest.split("    // README ends").next());
    let dedented: Vec<_> = body
        .expect("the example has its marks")
        .lines()
        .map(|line| line.strip_prefix("    ").unwrap_or(line))
        .collect();
    assert!(dedented.len() > 10);
    assert!(readme.contains(&dedented.join("\n")));
}

#[test]
fn the_readme_and_ci_run_the_same_tests() {
    let command = "\ncargo test --workspace --release\n";
    assert!(include_str!("../../README.md").contains(command));
    assert!(include_str!("../../.ci/run").contains(command));
}
