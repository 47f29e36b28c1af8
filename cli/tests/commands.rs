//! What the user sees for bad input, and for the cases that are no errors: `cmd/*.trycmd`.
#![allow(missing_docs)]

#[test]
fn commands_say_what_is_wrong_and_what_to_do() {
    trycmd::TestCases::new()
        .case("tests/cmd/*.trycmd")
        .case("tests/cmd/*.toml")
        .env("NO_COLOR", "1")
        .env("LITESTREAM_CONFIG", "")
        .run();
}
