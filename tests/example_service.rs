//! The example service over HTTP and JSON: one suite, on every storage that it speaks to.

// A service of a test's own, and a client for it.
mod api;
// What goes in and comes out again.
mod catalogue;
// Who may come in, and how often.
mod limits;
// What the model makes of it.
mod model;
// What the service says to requests that it cannot serve.
mod problems;
// Starting, stopping, and storages that do not answer.
mod running;

/// Makes a test of each behaviour on each storage.
macro_rules! on_every_storage {
    ($($module:ident::$behaviour:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $behaviour() {
                super::$module::$behaviour(super::api::Storage::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $behaviour() {
                super::$module::$behaviour(super::api::Storage::postgres()).await;
            })*
        }
        mod postgres_and_redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $behaviour() {
                super::$module::$behaviour(super::api::Storage::postgres_and_redis()).await;
            })*
        }
    };
}

on_every_storage! {
    catalogue::what_is_stored_is_read_back,
    catalogue::a_new_title_is_read_back_at_once,
    catalogue::search_finds_words_by_their_beginning,
    catalogue::writes_that_come_at_once_are_all_stored,
    limits::nobody_gets_in_without_a_key,
    limits::a_key_that_is_over_its_quota_is_told_when_to_come_back,
    limits::the_pass_of_this_process_goes_around_the_limiter,
    limits::nothing_that_comes_over_a_connection_goes_around_the_limiter,
    model::recommendations_leave_out_what_the_user_has_met,
    model::a_user_whom_nobody_knows_gets_what_is_trending,
    model::what_the_same_users_met_is_similar,
    model::what_counts_most_is_trending,
    model::a_seeded_service_is_fresh_when_it_says_so,
    problems::a_batch_has_1_to_1000_items,
    problems::faults_of_a_batch_are_named_by_their_place,
    problems::an_interaction_needs_its_entity,
    problems::bodies_that_cannot_be_read_are_refused,
    problems::what_does_not_exist_is_not_found,
    problems::parameters_that_make_no_sense_are_refused,
    running::what_was_acknowledged_survives_a_restart,
    running::after_the_shutdown_it_is_unavailable,
    running::its_own_layer_sees_every_route,
}
