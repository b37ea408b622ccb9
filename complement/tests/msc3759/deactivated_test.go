// Tests of MSC3759, the leave events of deactivated users.
package tests

import (
	"testing"

	"github.com/matrix-org/complement"
	"github.com/matrix-org/complement/client"
	"github.com/matrix-org/complement/helpers"
	"github.com/matrix-org/complement/match"
	"github.com/matrix-org/complement/must"
	"github.com/matrix-org/gomatrixserverlib/spec"
	"github.com/tidwall/gjson"
)

const (
	key       = "org.matrix.msc3759.deactivated"
	stableKey = "m.deactivated"
	password  = "superuser"
)

func deactivate(t *testing.T, user *client.CSAPI) {
	t.Helper()
	user.MustDo(t, "POST", []string{"_matrix", "client", "v3", "account", "deactivate"},
		client.WithJSONBody(t, map[string]interface{}{
			"auth": map[string]interface{}{
				"type":       "m.login.password",
				"identifier": map[string]interface{}{"type": "m.id.user", "user": user.UserID},
				"password":   password,
			},
		}))
}

func member(t *testing.T, reader *client.CSAPI, roomID, userID string) gjson.Result {
	t.Helper()
	return reader.MustGetStateEventContent(t, roomID, "m.room.member", userID)
}

// saysSo is the path of the key in a result: dots would separate names.
const saysSo = `org\.matrix\.msc3759\.deactivated`

func TestLeavesOfDeactivatedUsers(t *testing.T) {
	deployment := complement.Deploy(t, 2)
	defer deployment.Destroy(t)
	alice := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
	remote := deployment.Register(t, "hs2", helpers.RegistrationOpts{})

	t.Run("Joined rooms, invites and knocks end with leaves that say so", func(t *testing.T) {
		bob := deployment.Register(t, "hs1", helpers.RegistrationOpts{Password: password})
		bob.MustSetDisplayName(t, "Bob")
		joined := alice.MustCreateRoom(t, map[string]interface{}{"preset": "public_chat"})
		invited := alice.MustCreateRoom(t, map[string]interface{}{"preset": "private_chat"})
		knocked := alice.MustCreateRoom(t, map[string]interface{}{
			"preset": "private_chat",
			"initial_state": []map[string]interface{}{
				{"type": "m.room.join_rules", "state_key": "", "content": map[string]interface{}{"join_rule": "knock"}},
			},
		})
		bob.MustJoinRoom(t, joined, nil)
		remote.MustJoinRoom(t, joined, []spec.ServerName{deployment.GetFullyQualifiedHomeserverName(t, "hs1")})
		alice.MustInviteRoom(t, invited, bob.UserID)
		bob.MustDo(t, "POST", []string{"_matrix", "client", "v3", "knock", knocked}, client.WithJSONBody(t, struct{}{}))
		_, since := alice.MustSync(t, client.SyncReq{})

		deactivate(t, bob)
		for _, roomID := range []string{joined, invited, knocked} {
			alice.MustSyncUntil(t, client.SyncReq{Since: since}, client.SyncTimelineHas(roomID, func(event gjson.Result) bool {
				return event.Get("type").Str == "m.room.member" && event.Get("state_key").Str == bob.UserID &&
					event.Get("sender").Str == bob.UserID && event.Get("content.membership").Str == "leave" &&
					event.Get("content."+saysSo).Bool()
			}))
			must.MatchGJSON(t, member(t, alice, roomID, bob.UserID),
				match.JSONKeyMissing("displayname"), match.JSONKeyMissing("avatar_url"))
		}
		remote.MustSyncUntil(t, client.SyncReq{}, client.SyncLeftFrom(bob.UserID, joined, func(event gjson.Result) bool {
			return event.Get("content." + saysSo).Bool()
		}))
	})

	t.Run("Users cannot fake their own death", func(t *testing.T) {
		bob := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
		roomID := alice.MustCreateRoom(t, map[string]interface{}{"preset": "public_chat"})
		bob.MustJoinRoom(t, roomID, nil)
		bob.MustDo(t, "PUT", []string{"_matrix", "client", "v3", "rooms", roomID, "state", "m.room.member", bob.UserID},
			client.WithJSONBody(t, map[string]interface{}{"membership": "leave", key: true, stableKey: true}))
		must.MatchGJSON(t, member(t, alice, roomID, bob.UserID),
			match.JSONKeyEqual("membership", "leave"), match.JSONKeyMissing(saysSo), match.JSONKeyMissing(`m\.deactivated`))
	})

	t.Run("Nobody else's leave says so", func(t *testing.T) {
		bob := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
		roomID := alice.MustCreateRoom(t, map[string]interface{}{"preset": "public_chat"})
		bob.MustJoinRoom(t, roomID, nil)
		bob.MustLeaveRoom(t, roomID)
		must.MatchGJSON(t, member(t, alice, roomID, bob.UserID), match.JSONKeyMissing(saysSo))
		bob.MustJoinRoom(t, roomID, nil)
		alice.MustDo(t, "POST", []string{"_matrix", "client", "v3", "rooms", roomID, "kick"},
			client.WithJSONBody(t, map[string]interface{}{"user_id": bob.UserID, key: true}))
		must.MatchGJSON(t, member(t, alice, roomID, bob.UserID), match.JSONKeyMissing(saysSo))
	})
}
