// Tests of MSC4267, forgetting rooms by leaving them. What is tested follows from the server's capability:
// run them with the server's option on and off.
package tests

import (
	"errors"
	"net/http"
	"net/url"
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
	capability         = `capabilities.m\.forget_forced_upon_leave`
	unstableCapability = `capabilities.org\.matrix\.msc4267\.forget_forced_upon_leave`
	withLeftRooms      = `{"room":{"include_leave":true}}`
)

var errNotYet = errors.New("the room was not in rooms.leave")

func isForgetful(t *testing.T, user *client.CSAPI) bool {
	t.Helper()
	capabilities := gjson.ParseBytes(user.GetCapabilities(t))
	stable, unstable := capabilities.Get(capability), capabilities.Get(unstableCapability)
	must.Equal(t, stable.Raw, unstable.Raw, "both names of the capability")
	must.Equal(t, stable.Get("enabled").IsBool(), true, "enabled is a boolean")
	return stable.Get("enabled").Bool()
}

func mayRead(t *testing.T, user *client.CSAPI, roomID string) bool {
	t.Helper()
	res := user.Do(t, "GET", []string{"_matrix", "client", "v3", "rooms", roomID, "messages"}, client.WithQueries(url.Values{"dir": {"b"}}))
	if res.StatusCode == http.StatusForbidden {
		must.MatchResponse(t, res, match.HTTPResponse{StatusCode: 403, JSON: []match.JSON{match.JSONKeyEqual("errcode", "M_FORBIDDEN")}})
		return false
	}
	must.MatchSuccess(t, res)
	return true
}

func TestForgettingOnLeave(t *testing.T) {
	deployment := complement.Deploy(t, 2)
	defer deployment.Destroy(t)
	alice := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
	remote := deployment.Register(t, "hs2", helpers.RegistrationOpts{})
	hs2 := []spec.ServerName{deployment.GetFullyQualifiedHomeserverName(t, "hs2")}

	type story struct {
		name    string
		creator *client.CSAPI
		invited bool
		leave   func(t *testing.T, creator, bob *client.CSAPI, roomID string)
	}
	byThemselves := func(t *testing.T, _, bob *client.CSAPI, roomID string) { bob.MustLeaveRoom(t, roomID) }
	removed := func(how string) func(t *testing.T, creator, bob *client.CSAPI, roomID string) {
		return func(t *testing.T, creator, bob *client.CSAPI, roomID string) {
			creator.MustDo(t, "POST", []string{"_matrix", "client", "v3", "rooms", roomID, how},
				client.WithJSONBody(t, map[string]interface{}{"user_id": bob.UserID}))
		}
	}
	for _, story := range []story{
		{"a leave", alice, false, byThemselves},
		{"a kick", alice, false, removed("kick")},
		{"a ban", alice, false, removed("ban")},
		{"a kick by another server", remote, false, removed("kick")},
		{"a ban by another server", remote, false, removed("ban")},
		{"a rejected invite", alice, true, byThemselves},
		{"a rejected invite of another server", remote, true, byThemselves},
	} {
		t.Run("After "+story.name, func(t *testing.T) {
			bob := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
			forgetful := isForgetful(t, bob)
			roomID := story.creator.MustCreateRoom(t, map[string]interface{}{"preset": "public_chat"})
			if story.invited {
				story.creator.MustInviteRoom(t, roomID, bob.UserID)
				bob.MustSyncUntil(t, client.SyncReq{}, client.SyncInvitedTo(bob.UserID, roomID))
			} else {
				bob.MustJoinRoom(t, roomID, hs2)
			}
			_, since := bob.MustSync(t, client.SyncReq{})
			if !story.invited {
				story.creator.MustSyncUntil(t, client.SyncReq{}, client.SyncJoinedTo(bob.UserID, roomID))
			}
			story.leave(t, story.creator, bob, roomID)

			// A device that was away hears of it once, forgotten or not.
			since = bob.MustSyncUntil(t, client.SyncReq{Since: since}, func(userID string, sync gjson.Result) error {
				if sync.Get("rooms.leave." + client.GjsonEscape(roomID)).Exists() {
					return nil
				}
				return errNotYet
			})
			again, _ := bob.MustSync(t, client.SyncReq{Since: since, TimeoutMillis: "0"})
			must.Equal(t, again.Get("rooms.leave."+client.GjsonEscape(roomID)).Exists(), false, "told twice")

			initial, _ := bob.MustSync(t, client.SyncReq{Filter: withLeftRooms})
			shown := initial.Get("rooms.leave." + client.GjsonEscape(roomID)).Exists()
			must.Equal(t, shown, !forgetful, "in an initial sync with left rooms")
			if !story.invited {
				must.Equal(t, mayRead(t, bob, roomID), !forgetful, "may read")
			}
		})
	}

	t.Run("An invite ends the forgetting", func(t *testing.T) {
		bob := deployment.Register(t, "hs1", helpers.RegistrationOpts{})
		roomID := alice.MustCreateRoom(t, map[string]interface{}{"preset": "private_chat"})
		alice.MustInviteRoom(t, roomID, bob.UserID)
		bob.MustJoinRoom(t, roomID, nil)
		bob.MustLeaveRoom(t, roomID)
		bob.MustDo(t, "POST", []string{"_matrix", "client", "v3", "rooms", roomID, "forget"}, client.WithJSONBody(t, struct{}{}))
		must.Equal(t, mayRead(t, bob, roomID), false, "may read what is forgotten")
		alice.MustInviteRoom(t, roomID, bob.UserID)
		bob.MustSyncUntil(t, client.SyncReq{}, client.SyncInvitedTo(bob.UserID, roomID))
		bob.MustJoinRoom(t, roomID, nil)
		must.Equal(t, mayRead(t, bob, roomID), true, "may read again")
	})
}
